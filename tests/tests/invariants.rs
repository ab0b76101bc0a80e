//! Invariants of the workspace that a compiler does not check: which crate may depend on which, where
//! `unsafe` may stand, how long files get, and that documentation lists what the programs know.
//!
//! Reads the work tree and `cargo metadata`; must never build, run or change anything.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers outside `#[test]` functions fail the test too"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Longest source file, lines; the style asks for a split above about 600.
const FILE_LINES_MAX: usize = 700;
/// Longest name of a BPF map, bytes (`BPF_OBJ_NAME_LEN` less the NUL).
const MAP_NAME_BYTES_MAX: usize = 15;
/// Deepest directory walked; the tree is far shallower.
const DEPTH_MAX: usize = 12;

/// What each crate may use of the others, in every kind of dependency but `dev`.
const WORKSPACE_EDGES: &[(&str, &[&str])] = &[
    ("clawgress-ebpf-common", &[]),
    ("clawgress-ebpf", &["clawgress-ebpf-common"]),
    ("clawgress-identity", &[]),
    ("clawgress-inspect", &[]),
    ("clawgress-policy", &["clawgress-ebpf-common", "clawgress-identity"]),
    ("clawgress-audit", &["clawgress-api", "clawgress-identity"]),
    ("clawgress-api", &["clawgress-ebpf-common", "clawgress-identity"]),
    (
        "clawgress-agent",
        &[
            "clawgress-api",
            "clawgress-audit",
            "clawgress-ebpf-common",
            "clawgress-identity",
            "clawgress-inspect",
            "clawgress-policy",
        ],
    ),
    (
        "clawgress-l7",
        &[
            "clawgress-api",
            "clawgress-ebpf-common",
            "clawgress-identity",
            "clawgress-inspect",
            "clawgress-policy",
        ],
    ),
    ("clawgressctl", &["clawgress-api", "clawgress-audit", "clawgress-inspect", "clawgress-policy"]),
    ("xtask", &["clawgress-ebpf-common"]),
];

/// Crates that decide and parse: no I/O, no clock, no task.
const PURE: [&str; 3] = ["clawgress-policy", "clawgress-identity", "clawgress-inspect"];

/// Crates whose presence in a pure crate's normal dependencies means I/O or tasks.
const IMPURE: [&str; 20] = [
    "tokio",
    "async-std",
    "smol",
    "mio",
    "polling",
    "hyper",
    "hyper-util",
    "reqwest",
    "tonic",
    "tower",
    "pingora-core",
    "socket2",
    "nix",
    "rustix",
    "aya",
    "rtnetlink",
    "redb",
    "rayon",
    "getrandom",
    "hickory-resolver",
];

/// Crates that a pure crate has only because features are united over the workspace: Pingora turns on the second
/// cryptography of rustls, and thereby that of `rustls-webpki`, which verifies with it and draws nothing.
const FOREIGN: [&str; 1] = ["ring"];

/// Calls that a pure crate's own source must not make.
const IMPURE_PATHS: [&str; 10] = [
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::process",
    "std::thread",
    "std::env",
    "std::io::std",
    "std::os",
    "SystemTime",
    "Instant",
];

/// Text files that people write.
const REGISTRY_SUFFIXES: [&str; 10] =
    [".rs", ".toml", ".md", ".sh", ".py", ".mjs", ".js", ".service", ".yml", ".conf"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in the workspace").to_owned()
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        // It has to know the packages of other platforms too, which no build here has fetched.
        .other_options(vec!["--locked".to_owned()])
        .exec()
        .expect("cargo metadata of the workspace")
}

/// Names of the packages that each workspace package depends on, other than for its tests.
fn direct(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    metadata
        .workspace_packages()
        .into_iter()
        .map(|package| {
            let names = package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development);
            (package.name.to_string(), names.map(|d| d.name.clone()).collect())
        })
        .collect()
}

/// Names of all packages in the normal dependency tree of `package`, with the features the workspace
/// resolves to.
fn tree(metadata: &Metadata, package: &str) -> BTreeSet<String> {
    tree_without(metadata, package, &[])
}

/// The same, but what only these packages reach.
fn tree_without(metadata: &Metadata, package: &str, without: &[&str]) -> BTreeSet<String> {
    let resolve = metadata.resolve.as_ref().expect("a resolved graph");
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|n| (&n.id, n)).collect();
    let names: BTreeMap<_, _> = metadata.packages.iter().map(|p| (&p.id, p.name.to_string())).collect();
    let start = metadata.packages.iter().find(|p| p.name.as_str() == package).expect(package);
    let mut found = BTreeSet::new();
    let mut open = vec![&start.id];
    while let Some(id) = open.pop() {
        for dependency in &nodes[id].deps {
            let is_normal = dependency.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal);
            let name = &names[&dependency.pkg];
            if is_normal && !without.contains(&name.as_str()) && found.insert(name.clone()) {
                open.push(&dependency.pkg);
            }
        }
    }
    found
}

/// Files of the work tree whose name `is_wanted`, without what is built or fetched.
fn files(is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![(root(), 0)];
    while let Some((directory, depth)) = open.pop() {
        assert!(depth < DEPTH_MAX, "{}: nested deeper than expected", directory.display());
        for entry in std::fs::read_dir(&directory).expect("a readable directory") {
            let path = entry.expect("a directory entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_symlink()
                || matches!(name.as_str(), "target" | ".git" | "node_modules" | "corpus" | "artifacts")
            {
                continue;
            }
            if path.is_dir() {
                open.push((path, depth + 1));
            } else if is_wanted(&name) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no such file below {}", root().display());
    found
}

fn rust_files() -> Vec<PathBuf> {
    files(|name| name.ends_with(".rs"))
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("a path in the workspace").to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Rust source with comments and the contents of strings and character literals blanked, so that words
/// in them are not taken for code. Line breaks stay.
fn code_only(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let skipped = comment_or_literal(rest, code.chars().last());
        if skipped == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.push(' ');
            code.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
            rest = &rest[skipped..];
        }
    }
    code
}

/// Bytes of the comment or literal that `rest` starts with, else 0.
fn comment_or_literal(rest: &str, before: Option<char>) -> usize {
    let after_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return rest.find("*/").map_or(rest.len(), |end| end + 2);
    }
    let raw = rest.strip_prefix('b').unwrap_or(rest);
    if !after_word && let Some(hashes) = raw.strip_prefix('r') {
        let count = hashes.bytes().take_while(|b| *b == b'#').count();
        if hashes[count..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(count));
            let start = rest.len() - hashes.len() + count + 1;
            return rest[start..].find(&close).map_or(rest.len(), |end| start + end + close.len());
        }
    }
    let quoted = |quote: char| {
        let mut escaped = false;
        let end = rest.char_indices().skip(1).find(|(_, c)| {
            let closes = *c == quote && !escaped;
            escaped = *c == '\\' && !escaped;
            closes
        });
        end.map_or(rest.len(), |(at, c)| at + c.len_utf8())
    };
    if rest.starts_with('"') {
        return quoted('"');
    }
    // A character literal, not a lifetime.
    let mut chars = rest.chars().skip(1);
    match (rest.starts_with('\''), chars.next(), chars.next()) {
        (true, Some('\\'), _) => quoted('\''),
        (true, Some(_), Some('\'')) => quoted('\''),
        _ => 0,
    }
}

#[test]
fn code_only_blanks_comments_and_literals() {
    let source = "a(\"unsafe \\\" x\"); // unsafe\n/* unsafe\n */ b('\\'', 'u', r#\"unsafe \" \"#, b\"unsafe\"); fn c<'a>(x: &'a u8) {} let r = br; d";
    let code = code_only(source);
    assert!(!code.contains("unsafe"), "{code}");
    for kept in ["a(", "b(", "fn c<'a>(x: &'a u8) {}", "let r = br; d"] {
        assert!(code.contains(kept), "{kept}: {code}");
    }
    assert_eq!(code.lines().count(), source.lines().count());
}

#[test]
fn workspace_crates_depend_one_way() {
    let metadata = metadata();
    let direct = direct(&metadata);
    let ours: BTreeSet<&str> = direct.keys().map(String::as_str).collect();
    let allowed: BTreeMap<&str, &[&str]> = WORKSPACE_EDGES.iter().copied().collect();
    for (package, dependencies) in &direct {
        if package == "clawgress-e2e" {
            continue;
        }
        let allowed = allowed.get(package.as_str()).unwrap_or_else(|| {
            panic!("`{package}` is not in WORKSPACE_EDGES: decide what it may depend on, and say so in ARCHITECTURE.md")
        });
        for dependency in dependencies.iter().filter(|d| ours.contains(d.as_str())) {
            assert!(allowed.contains(&dependency.as_str()), "`{package}` must not depend on `{dependency}`");
        }
    }
    for (package, dependencies) in &direct {
        if !matches!(package.as_str(), "clawgress-e2e" | "xtask") {
            assert!(!dependencies.contains("clawgress-e2e"), "`{package}` must not depend on the tests");
        }
    }
}

#[test]
fn crates_have_the_third_parties_they_may() {
    let metadata = metadata();
    let direct = direct(&metadata);
    for (package, dependencies) in &direct {
        for dependency in dependencies {
            let holder = match dependency.as_str() {
                "aya" | "aya-log" => Some("clawgress-agent"),
                "aya-ebpf" | "aya-log-ebpf" => Some("clawgress-ebpf"),
                name if name.starts_with("pingora") => Some("clawgress-l7"),
                _ => None,
            };
            assert!(
                holder.is_none_or(|h| h == package),
                "only `{}` may use `{dependency}`, not `{package}`",
                holder.unwrap_or_default()
            );
        }
    }
    for package in ["clawgress-l7", "clawgressctl", "clawgress-api"] {
        assert!(!tree(&metadata, package).contains("aya"), "`{package}` reaches aya through another crate");
    }
    for package in ["clawgress-agent", "clawgressctl", "clawgress-api"] {
        let found: Vec<_> =
            tree(&metadata, package).into_iter().filter(|n| n.starts_with("pingora")).collect();
        assert!(found.is_empty(), "`{package}` reaches {found:?}");
    }
    assert!(!tree(&metadata, "clawgress-l7").contains("clawgress-agent"));
}

#[test]
fn the_shared_abi_has_no_dependencies_by_default() {
    let metadata = metadata();
    let package =
        metadata.packages.iter().find(|p| p.name.as_str() == "clawgress-ebpf-common").expect("the crate");
    for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development) {
        assert!(dependency.optional, "`{}` must be optional", dependency.name);
    }
    assert!(!package.features.contains_key("default"), "no feature is on by default");
    let source = read(&root().join("clawgress-ebpf-common/src/lib.rs"));
    assert!(source.contains("#![no_std]"));
}

#[test]
fn pure_crates_do_no_io() {
    let metadata = metadata();
    for package in PURE {
        let reached = tree_without(&metadata, package, &FOREIGN);
        let found: Vec<_> = reached.into_iter().filter(|n| IMPURE.contains(&n.as_str())).collect();
        assert!(found.is_empty(), "`{package}` reaches {found:?}");
        let library = root().join(package).join("src/lib.rs");
        assert!(read(&library).contains("#![forbid(unsafe_code)]"), "{}", relative(&library));
    }
    for path in rust_files() {
        let name = relative(&path);
        let is_test = name.ends_with("/tests.rs") || name.contains("/tests/") || name.contains("/benches/");
        if is_test || !PURE.iter().any(|p| name.starts_with(&format!("{p}/src/"))) {
            continue;
        }
        // Unit tests at a file's end may measure and print.
        let code = code_only(&read(&path));
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for impure in IMPURE_PATHS {
            assert!(
                !code.contains(impure),
                "{name}: `{impure}` in a crate that does no I/O and holds no clock"
            );
        }
    }
}

#[test]
fn unsafe_stands_only_where_it_may() {
    for path in rust_files() {
        let name = relative(&path);
        let may = name.starts_with("clawgress-ebpf/")
            || name.starts_with("clawgress-ebpf-common/")
            || name.starts_with("clawgress-agent/src/datapath/")
            || name == "clawgress-agent/src/datapath.rs";
        let source = read(&path);
        // `#[unsafe(no_mangle)]` is an attribute's spelling, not a block that needs a reason.
        let code = code_only(&source).replace("#[unsafe(", "#[(");
        let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        let count = words.filter(|w| *w == "unsafe").count();
        assert!(may || count == 0, "{name}: `unsafe` outside the eBPF crates and the kernel datapath");
        let reasons = source.matches("SAFETY:").count() + source.matches("# Safety").count();
        assert!(count == 0 || reasons > 0, "{name}: {count} times `unsafe` without a `SAFETY:` comment");
    }
}

#[test]
fn files_are_short_and_say_what_they_own() {
    let mut problems = Vec::new();
    for path in rust_files() {
        let name = relative(&path);
        let source = read(&path);
        let lines = source.lines().count();
        if lines > FILE_LINES_MAX {
            problems.push(format!("{name}: {lines} lines, more than {FILE_LINES_MAX}: split it"));
        }
        let first =
            source.lines().find(|l| !l.trim().is_empty() && !l.starts_with("#![")).unwrap_or_default();
        if !first.starts_with("//!") {
            problems.push(format!("{name}: does not start with a `//!` that says what the module owns"));
        }
        if name.ends_with("/mod.rs") {
            problems.push(format!("{name}: name it after its directory instead"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn no_package_registry_is_named() {
    // Composed, so that this file does not name them either.
    let hosts = [
        ["crates", "io"],
        ["pypi", "org"],
        ["npmjs", "org"],
        ["npmjs", "com"],
        ["pythonhosted", "org"],
        ["debian", "org"],
    ];
    let hosts = hosts.map(|parts| parts.join("."));
    let mut problems = Vec::new();
    for path in files(|name| REGISTRY_SUFFIXES.iter().any(|s| name.ends_with(s))) {
        let text = read(&path);
        let named = hosts.iter().filter(|host| text.contains(host.as_str()));
        problems.extend(named.map(|host| format!("{}: names the registry `{host}`", relative(&path))));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_drop_reason_is_documented() {
    use clawgress_ebpf_common::DropReason;
    let page = read(&root().join("docs/drop-reasons.md"));
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|l| l.starts_with("| ") && l.contains('`'))
        .map(|l| l.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let documented: Vec<(String, String, String)> =
        rows.iter().map(|r| (r[0].to_owned(), r[1].trim_matches('`').to_owned(), r[3].to_owned())).collect();
    let known: Vec<(String, String, String)> = DropReason::ALL
        .iter()
        .map(|r| (r.code().to_string(), r.name().to_owned(), r.describe().trim().to_owned()))
        .collect();
    for row in &known {
        assert!(
            documented.contains(row),
            "docs/drop-reasons.md lacks `| {} | `{}` | … | {} |`",
            row.0,
            row.1,
            row.2
        );
    }
    assert_eq!(documented, known, "docs/drop-reasons.md lists other reasons, or in another order");
}

#[test]
fn map_names_fit_the_kernel() {
    let source = read(&root().join("clawgress-ebpf-common/src/lib.rs"));
    let start = source.find("pub mod map {").expect("the module of map names");
    let module = &source[start..start + source[start..].find("\n}").expect("its end")];
    let names: Vec<&str> =
        module.lines().filter(|l| l.contains("pub const")).filter_map(|l| l.split('"').nth(1)).collect();
    assert!(names.len() > 10, "{names:?}");
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "two maps share a name");
    for name in names {
        assert!(name.len() <= MAP_NAME_BYTES_MAX, "`{name}` is longer than {MAP_NAME_BYTES_MAX} bytes");
        let version = name.strip_prefix("claw_").and_then(|n| n.rsplit_once("_v")).map(|(_, v)| v);
        assert!(version.is_some_and(|v| v.parse::<u32>().is_ok()), "`{name}` is not `claw_<noun>_v<N>`");
    }
}

#[test]
fn workspace_dependencies_are_exact_and_current_rules_apply() {
    let manifest = read(&root().join("Cargo.toml"));
    let start = manifest.find("[workspace.dependencies]").expect("the table");
    let table = manifest[start..].split("\n[").next().unwrap_or_default();
    for line in table.lines().skip(1).filter(|l| l.contains('=') && !l.starts_with('#')) {
        assert!(line.contains("\"=") || line.contains("path ="), "not an exact version: `{line}`");
    }
    for package in metadata().workspace_packages() {
        let own = read(package.manifest_path.as_std_path());
        assert!(
            own.contains("[lints]\nworkspace = true"),
            "`{}` does not take the workspace's lints",
            package.name
        );
        assert!(package.license.is_some(), "`{}` names no licence", package.name);
    }
}
