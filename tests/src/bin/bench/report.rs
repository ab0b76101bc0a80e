//! Figures to text. Ratios and differences are taken within a round, between medians; over the rounds
//! they are given as least, median and most.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::Context as _;
use clawgress_api::clock::{Clock as _, SystemClock};
use serde_json::Value;

use crate::decisions::Decisions;
use crate::latency::Latency;
use crate::promises::{self, Bound, Promise};
use crate::rates::Rates;
use crate::swaps::Swaps;

/// Everything that was measured.
pub struct Report {
    /// As `clawgress-agent bench-kernel` prints it.
    pub kernel: Value,
    /// As `clawgress-agent bench-drops` prints it.
    pub drops: Value,
    /// Identity and policy.
    pub decisions: Decisions,
    /// What went over the lab's links.
    pub latency: Latency,
    /// How much went over them.
    pub rates: Rates,
    /// Requests while revisions went live.
    pub swaps: Swaps,
}

/// What a million prefixes may cost, beside the three of the family's first row.
fn many_prefixes(sizes: &[Value]) -> Vec<Promise> {
    let number = |size: &Value, key: &str| size.get(key).and_then(Value::as_u64).unwrap_or_default();
    let ns = |size: &Value, case: &str| size.get("ns")?.get(case)?.get("median")?.as_f64();
    let mut promises = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let mut of_family =
            sizes.iter().filter(|size| size.get("family").and_then(Value::as_str) == Some(family));
        let first = of_family.next();
        for many in of_family.filter(|size| number(size, "prefixes") == 1_000_000) {
            for case in ["xdp_drop", "xdp_pass", "tc_direct", "tc_steer", "xdp_random"] {
                let few = first.and_then(|first| ns(first, case));
                let ratio = ns(many, case).zip(few).map_or(f64::NAN, |(many, few)| many / few);
                let agents = match number(many, "agents") {
                    1 => String::new(),
                    agents => format!(" and {agents} agents"),
                };
                let what = format!("`{case}` with a million {family} prefixes{agents}, beside three");
                promises.push(Promise::new(what, Bound::Most(2.0), ratio, "×"));
            }
        }
    }
    promises
}

/// Least, median, most.
#[derive(Clone, Copy, Debug)]
pub struct Spread(f64, f64, f64);

impl Spread {
    /// Of all values.
    pub fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
        Spread(at(0), at(values.len() / 2), at(values.len().saturating_sub(1)))
    }

    /// The one in the middle.
    pub fn median(self) -> f64 {
        self.1
    }

    /// All three.
    pub fn text(self, digits: usize) -> String {
        format!("{:.digits$} / **{:.digits$}** / {:.digits$}", self.0, self.1, self.2)
    }
}

// === impl Report ===

impl Report {
    /// The whole file.
    pub fn markdown(&self) -> anyhow::Result<String> {
        let mut text = String::from("# Benchmarks\n\n");
        writeln!(
            text,
            "Written by `cargo xtask bench`; what is measured by tests instead is in [measured.md](measured.md). Read ratios, not absolute figures: both ends, the gateway and the servers share one machine.\n"
        )?;
        writeln!(text, "{}\n", machine()?)?;
        text.push_str(&promises::markdown(&self.promises()?)?);
        self.kernel(&mut text)?;
        self.drops(&mut text)?;
        writeln!(text, "{}\n", self.decisions.markdown().join("\n"))?;
        text.push_str(&self.rates.markdown()?);
        text.push_str(&self.swaps.markdown()?);
        text.push_str(&self.latency.markdown()?);
        Ok(text)
    }

    fn promises(&self) -> anyhow::Result<Vec<Promise>> {
        let median = |name: &str| {
            let figure = self
                .kernel
                .get("ns_per_packet")
                .and_then(|cases| cases.get(name)?.get("ns_median")?.as_f64());
            figure.with_context(|| format!("no median of `{name}`"))
        };
        let mut promises = Vec::new();
        for (name, most) in [("xdp_drop", 40.0), ("xdp_pass", 80.0)] {
            let what = format!("`{name}`, a packet that comes again");
            promises.push(Promise::new(what, Bound::Most(most), median(name)?, "ns"));
        }
        let sizes = self.kernel.get("prefixes").and_then(|p| p.get("sizes")?.as_array());
        let sizes = sizes.context("`bench-kernel` gave no figures of prefixes")?;
        promises.extend(many_prefixes(sizes));
        let drops =
            self.drops.get("sizes").and_then(Value::as_array).context("`bench-drops` gave no figures")?;
        for size in drops.iter().filter(|size| size.get("prefixes").and_then(Value::as_u64) == Some(100_000))
        {
            let is_spread = size.get("spread").and_then(Value::as_bool).unwrap_or_default();
            let to = if is_spread { "random destinations" } else { "one destination" };
            for way in ["netdev", "prerouting"] {
                let ratios =
                    rates(size, "clawgress").iter().zip(rates(size, way)).map(|(a, b)| a / b).collect();
                let what = format!("drops a second at 100,000 prefixes, {to}, beside {}", words(way));
                promises.push(Promise::new(what, Bound::Least(2.0), Spread::of(ratios).median(), "×"));
            }
        }
        promises.extend(self.decisions.promises());
        promises.extend(self.latency.promises());
        promises.extend(self.rates.promises());
        Ok(promises)
    }

    fn kernel(&self, text: &mut String) -> anyhow::Result<()> {
        writeln!(text, "## Kernel programs\n")?;
        writeln!(
            text,
            "By `BPF_PROG_TEST_RUN`, ns a packet; least / **median** / most of the runs. A run has a cost of its own: `nothing` is a program of two instructions, \
             and the third column is what the median is more than that. `anew`: judged in full, as the first of its kind is; without it, as what comes again. `limit_1` and `limit_4`: held to one and to four limiters of packets, \
             and how many times the median of the same without.\n"
        )?;
        writeln!(text, "| program and verdict | ns | more than nothing | × unlimited |\n|---|---|---|---|")?;
        let cases = self.kernel.get("ns_per_packet").and_then(Value::as_object);
        let cases = cases.context("`bench-kernel` gave no figures")?;
        let ns = |name: &str, key: &str| {
            let figure = cases.get(name).and_then(|case| case.get(key)?.as_f64());
            figure.with_context(|| format!("no `{key}` of `{name}`"))
        };
        for name in cases.keys() {
            let spread = Spread(ns(name, "ns_min")?, ns(name, "ns_median")?, ns(name, "ns_max")?);
            let nothing = if name.starts_with("xdp") { "xdp_nothing" } else { "tc_nothing" };
            let more = spread.1 - ns(nothing, "ns_median")?;
            let times = match name.split_once("_limit_") {
                Some((unlimited, _)) => format!("{:.2}", spread.1 / ns(unlimited, "ns_median")?),
                None => "–".to_owned(),
            };
            writeln!(text, "| `{name}` | {} | {more:.0} | {times} |", spread.text(0))?;
        }
        writeln!(text)?;
        self.prefixes(text)
    }

    fn prefixes(&self, text: &mut String) -> anyhow::Result<()> {
        writeln!(text, "### With many prefixes and agents\n")?;
        writeln!(
            text,
            "IPv4 prefixes of /14 to /32, most of them /24; IPv6 of /32 to /64, most of them /48, in 40,000 allocations of /32. Each packet judged in full: nothing is remembered. To one destination, ns a packet; what is steered comes as far as to its \
             listener. To random destinations each packet is a run of its own, with that run's cost in it. Median of the runs, and in brackets how many times that of the family's first row.\n"
        )?;
        writeln!(
            text,
            "| family | prefixes | agents | tables, MiB | build, ms | swap, ms | `xdp_drop` | `xdp_pass` | `tc_direct` | `tc_steer` | random, XDP |\n|---|---|---|---|---|---|---|---|---|---|---|"
        )?;
        let sizes = self.kernel.get("prefixes").and_then(|p| p.get("sizes")).and_then(Value::as_array);
        let sizes = sizes.context("`bench-kernel` gave no figures of prefixes")?;
        let median = |size: &Value, case: &str| {
            size.get("ns").and_then(|ns| ns.get(case)?.get("median")?.as_f64()).context("no median")
        };
        let family = |size: &Value| size.get("family").and_then(Value::as_str).map(str::to_owned);
        for size in sizes {
            let name = family(size).context("no family")?;
            let first =
                sizes.iter().find(|other| family(other).as_ref() == Some(&name)).context("no sizes")?;
            let number =
                |key: &str| size.get(key).and_then(Value::as_u64).with_context(|| format!("no `{key}`"));
            write!(text, "| {name} |")?;
            for key in ["prefixes", "agents", "mib", "build_ms", "swap_ms"] {
                write!(text, " {} |", number(key)?)?;
            }
            for case in ["xdp_drop", "xdp_pass", "tc_direct", "tc_steer", "xdp_random"] {
                let ns = median(size, case)?;
                write!(text, " **{ns:.0}** ({:.2}) |", ns / median(first, case)?)?;
            }
            writeln!(text)?;
        }
        writeln!(text)?;
        Ok(())
    }

    fn drops(&self, text: &mut String) -> anyhow::Result<()> {
        writeln!(text, "## Packets dropped, beside nftables\n")?;
        writeln!(
            text,
            "The same prefixes (/24, no two adjacent) and the same generator: live frames of an XDP test run, redirected into a virtual cable \
             whose other end drops them on the same processor; figures are packets a second of that processor's time, the generator's included. Clawgress finds the agent by address and MAC, and counts and reports by agent, \
             destination and reason; nftables matches an interval set and counts. Alternating runs; each cell is least / **median** / most.\n"
        )?;
        writeln!(
            text,
            "| prefixes | destinations | who drops | million packets/s | Clawgress does × |\n|---|---|---|---|---|"
        )?;
        let sizes =
            self.drops.get("sizes").and_then(Value::as_array).context("`bench-drops` gave no figures")?;
        for size in sizes {
            let prefixes = size.get("prefixes").and_then(Value::as_u64).context("no size")?;
            let is_spread = size.get("spread").and_then(Value::as_bool).unwrap_or_default();
            let destinations = if is_spread { "random" } else { "one" };
            let own = rates(size, "clawgress");
            for way in ["clawgress", "netdev", "prerouting"] {
                let all = rates(size, way);
                let ratios = own.iter().zip(&all).map(|(a, b)| a / b).collect();
                let ratio = if way == "clawgress" { "1".to_owned() } else { Spread::of(ratios).text(2) };
                let millions = Spread::of(all.iter().map(|r| r / 1e6).collect()).text(2);
                writeln!(text, "| {prefixes} | {destinations} | {} | {millions} | {ratio} |", words(way))?;
            }
        }
        writeln!(text)?;
        Ok(())
    }
}

/// Rounds of packets dropped a second, of a number of prefixes.
fn rates(size: &Value, way: &str) -> Vec<f64> {
    size.get(way).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// For people.
fn words(way: &str) -> &str {
    match way {
        "netdev" => "nftables, `netdev` ingress",
        "prerouting" => "nftables, `inet` prerouting",
        _ => "Clawgress, XDP",
    }
}

/// The machine, the commit, the day and the load.
pub fn machine() -> anyhow::Result<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split(':').nth(1).unwrap_or("unknown").trim().to_owned()
    };
    let output = |program: &str, args: &[&str]| -> anyhow::Result<String> {
        let output = Command::new(program).args(args).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let memory_kb: u64 =
        field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    Ok(format!(
        "Machine: {} × {}, {} GiB, Linux {}; {}; commit {}; {}; load average at the end {}.",
        std::thread::available_parallelism()?,
        field(&read("/proc/cpuinfo"), "model name"),
        memory_kb / (1024 * 1024) + 1,
        read("/proc/sys/kernel/osrelease").trim(),
        output("rustc", &["--version"])?,
        output("git", &["rev-parse", "--short", "HEAD"])?,
        SystemClock.now().strftime("%F"),
        read("/proc/loadavg").split(' ').next().unwrap_or("unknown"),
    ))
}
