//! Floods from an agents' host: another agent keeps its service, and no process grows.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use clawgress_e2e::lab::{Host, Role};
use clawgress_e2e::plan::{ANON, API, GATEWAY, KNOWN, addresses};
use clawgress_e2e::scenario::{Site, TEAM};

use crate::frames::{SYN, ip, tcp};
use crate::packets::{mac, sum};
use crate::support::{admin, codes, curl, denied, record, site, untouched};

/// A flood lasts until it has sent so many frames, or for so long on a machine that is slow; fewer than the
/// least are no flood.
const FRAMES_MAX: usize = 400_000;
const FRAMES_MIN: usize = 20_000;
const FLOOD_TIME_MAX: Duration = Duration::from_secs(6);
/// Good requests before a flood, and at least as many while it lasts.
const REQUESTS: usize = 8;
/// Most resident memory a role may gain by a flood, KiB: its queues full (drop events, audit records), and
/// what an allocator keeps of the busiest moment. A record kept for each frame would be ten times that.
const GROWTH_KIB_MAX: u64 = 48 * 1024;

/// Sends a frame many times, with other numbers each time: in each argument, the first offset gets a random
/// number and the others its complement, which leaves the checksums they count in as they are.
const FLOODER: &str = r"
import random, socket, sys, time
interface, least, most, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
frame = bytearray.fromhex(sys.argv[5])
fields = [[int(o) for o in f.split(',')] for f in sys.argv[6:]]
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((interface, 0))
end, sent = time.monotonic() + seconds, 0
while sent < least or (sent < most and time.monotonic() < end):
    for _ in range(64):
        for first, *others in fields:
            r = random.getrandbits(16)
            frame[first:first + 2] = r.to_bytes(2, 'big')
            for other in others:
                frame[other:other + 2] = (0xffff - r).to_bytes(2, 'big')
        try:
            s.send(frame)
            sent += 1
        except OSError:
            pass
print(sent)
";

/// Offsets in the frame of a SYN over IPv4: IP id, source address (its low half), source port, and the low
/// halves of sequence and acknowledgement numbers.
const ID: usize = 18;
const SOURCE: usize = 28;
const PORT: usize = 34;
const SEQUENCE: usize = 40;
const ACKNOWLEDGEMENT: usize = 44;

/// A SYN with right checksums, which stay right when a field and its complement are changed together.
fn syn(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut frame = ip(mac(KNOWN.mac), from.into(), to.into(), 6, &tcp(0xFFFF, 443, SYN));
    frame[..6].copy_from_slice(&mac(GATEWAY.mac));
    // Complements of the zero that stands in the fields now.
    for field in [ID, SEQUENCE, ACKNOWLEDGEMENT] {
        frame[field..field + 2].copy_from_slice(&[0, 0]);
    }
    let header = sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&header.to_be_bytes());
    let mut counted = frame[26..34].to_vec();
    counted.extend([0, 6, 0, 20]);
    counted.extend(&frame[34..]);
    let transport = sum(&counted);
    frame[50..52].copy_from_slice(&transport.to_be_bytes());
    frame
}

/// Resident memory of a role, KiB.
pub fn resident(site: &mut Site, role: Role) -> u64 {
    let pid = site.gateway.pid(role).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn all_resident(site: &mut Site) -> Vec<(Role, u64)> {
    Role::ALL.map(|role| (role, resident(site, role))).to_vec()
}

/// How long the neighbour's request takes; it must succeed.
#[track_caller]
fn request(site: &Site, when: &str) -> Duration {
    let begun = Instant::now();
    // Both hosts' packets wait in one queue of this machine's before anybody can tell them apart, so that a name may have to be
    // asked for again; the time that takes counts.
    let again = ["--retry", "2", "--retry-all-errors", "https://api.allowed.test/neighbour"];
    let output = curl(site, Host::Anon, &again);
    assert_eq!(codes(&output).0, 200, "the neighbour lost its service {when}: {output:?}");
    begun.elapsed()
}

fn middle(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

/// Floods from the known host while the neighbour works, and tells what that cost.
#[track_caller]
fn flood(site: &mut Site, what: &str, frame: &[u8], fields: &[&str]) {
    let before = all_resident(site);
    let calm = middle((0..REQUESTS).map(|_| request(site, "before the flood")).collect());
    let hex: String = frame.iter().map(|b| format!("{b:02x}")).collect();
    let (least, most) = (FRAMES_MIN.to_string(), FRAMES_MAX.to_string());
    let seconds = FLOOD_TIME_MAX.as_secs().to_string();
    let mut argv = vec!["python3", "-c", FLOODER, "eth0", &least, &most, &seconds, &hex];
    argv.extend(fields);
    let mut command = site.gateway.lab.command(Host::Known, &argv);
    command.stdout(std::process::Stdio::piped());
    let mut flooder = command.spawn().unwrap();
    let (mut times, begun) = (Vec::new(), Instant::now());
    while flooder.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < 10 * FLOOD_TIME_MAX, "the flood does not end");
        times.push(request(site, "in the flood"));
    }
    let sent = String::from_utf8(flooder.wait_with_output().unwrap().stdout).unwrap();
    let sent: usize = sent.trim().parse().unwrap();
    assert!(sent >= FRAMES_MIN, "{sent} frames are no flood");
    while times.len() < REQUESTS {
        times.push(request(site, "after the flood"));
    }
    let busy = middle(times);
    println!(
        "{what}: {sent} frames in {:?}; neighbour's requests, median and worst: {calm:?} before, {busy:?} during",
        begun.elapsed()
    );
    for ((role, before), (_, after)) in before.into_iter().zip(all_resident(site)) {
        println!("{what}: {} has {before} KiB before, {after} after", role.name());
        assert!(after < before + GROWTH_KIB_MAX, "{} grew from {before} to {after} KiB", role.name());
    }
}

#[test]
fn a_flood_takes_nothing_from_another_agent() {
    let mut site = site();
    let sources = [format!("agents0={},{}", ANON.v4, ANON.mac), format!("agents0={},{}", ANON.v6, ANON.mac)];
    admin(&site).create_agent("neighbour", TEAM, &sources).unwrap();
    site.gateway.ready().unwrap();
    let Some(IpAddr::V4(api)) = addresses(API).first().copied() else { panic!("no address") };

    // From addresses nobody has.
    let [a, b, ..] = KNOWN.v4.octets();
    let spoofed = syn(Ipv4Addr::new(a, b, 0, 0), api);
    let changed = [format!("{SOURCE},{ID},{ACKNOWLEDGEMENT}"), format!("{PORT},{SEQUENCE}")];
    flood(&mut site, "spoofed SYN flood", &spoofed, &[&changed[0], &changed[1]]);
    record(&site, "the strangers", |r| denied(r, "anonymous"));

    // From the agent's own, to where it may connect: each is a flow, and a half-open connection of L7's.
    let known = syn(KNOWN.v4, api);
    flood(&mut site, "known agent's SYN flood", &known, &[&changed[1]]);
    site.gateway.ready().unwrap();
    request(&site, "in the end");
    untouched(&site);
}
