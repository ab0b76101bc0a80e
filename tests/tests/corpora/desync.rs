//! Requests that two parsers take for different ones, of the sources of a crate that is never built.

use std::fs;
use std::path::PathBuf;

use cargo_metadata::MetadataCommand;

/// The directory of a package's sources, as cargo fetched them.
pub fn sources(package: &str) -> PathBuf {
    let metadata = MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .other_options(vec!["--locked".to_owned()])
        .exec()
        .expect("cargo metadata of the workspace");
    let found = metadata.packages.iter().find(|p| p.name.as_str() == package);
    let manifest = &found.unwrap_or_else(|| panic!("`{package}` is in the lock")).manifest_path;
    manifest.parent().expect("a directory").as_std_path().to_owned()
}

/// A request of the collection.
pub struct Case {
    pub name: String,
    pub tier: String,
    pub head: Vec<u8>,
}

fn scalar(value: &serde_yaml::Value) -> String {
    match value {
        serde_yaml::Value::String(text) => text.clone(),
        serde_yaml::Value::Number(number) => number.to_string(),
        serde_yaml::Value::Bool(truth) => truth.to_string(),
        _ => String::new(),
    }
}

/// The cases, each for `host` where it has one `Host`, or none.
pub fn cases(host: &str) -> Vec<Case> {
    let dir = sources("http_desync_guardian").join("tests");
    let mut cases = Vec::new();
    for entry in fs::read_dir(&dir).expect("cases") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let file: serde_yaml::Value =
            serde_yaml::from_str(&fs::read_to_string(&path).expect("text")).expect("YAML");
        for case in file.as_sequence().expect("cases") {
            let of = |name: &str| scalar(&case[name]);
            let fields = case["headers"].as_sequence().cloned().unwrap_or_default();
            let fields: Vec<(String, String)> =
                fields.iter().map(|field| (scalar(&field["name"]), scalar(&field["value"]))).collect();
            let hosts = fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("host")).count();
            let mut head = format!("{} {} {}\r\n", of("method"), of("uri"), of("version"));
            if hosts == 0 {
                head.push_str(&format!("Host: {host}\r\n"));
            }
            for (name, value) in &fields {
                let is_own = hosts == 1 && name.eq_ignore_ascii_case("host") && !value.trim().is_empty();
                let value = if is_own { host } else { value };
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            let tier = scalar(&case["expected"]["tier"]);
            // One character a byte, as the collection has them.
            let head = head.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect();
            cases.push(Case { name: of("name"), tier, head });
        }
    }
    cases
}
