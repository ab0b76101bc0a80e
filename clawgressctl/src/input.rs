//! Files that people write: read within bounds, and what is wrong with one told with its line, its column and a caret.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use clawgress_policy::study::caret;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_saphyr::{MessageFormatter as _, UserMessageFormatter};

use crate::failure::Failure;
use crate::output;

/// Largest file, bytes: what the agent takes.
pub const FILE_BYTES_MAX: usize = 64 << 20;

/// Reads a file, or standard input (`-`).
pub fn read(path: &Path) -> Result<String, Failure> {
    read_within(path, FILE_BYTES_MAX)
}

/// The same of so many bytes at most.
pub fn read_within(path: &Path, bytes_max: usize) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let most = bytes_max as u64 + 1;
    let read = if path == Path::new("-") {
        io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    read.map_err(|e| Failure::Refused(format!("cannot read `{}`: {e}", path.display())))?;
    if bytes.len() > bytes_max {
        return Err(Failure::Refused(format!("`{}` is over {bytes_max} bytes", path.display())));
    }
    String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        let bytes = e.into_bytes();
        let text = String::from_utf8_lossy(&bytes);
        misread(path, &text, Some(place(&text, valid)), "this is not UTF-8: save the file as UTF-8")
    })
}

/// Reads the TOML that a file holds.
pub fn toml_of<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, Failure> {
    toml::from_str(text).map_err(|e| {
        let at = e.span().map_or(0, |span| span.start);
        misread(path, text, Some(place(text, at)), e.message())
    })
}

/// Reads what a file holds: YAML if its name says so, else TOML.
pub fn yaml_or_toml_of<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, Failure> {
    if !is_yaml(path) {
        return toml_of(path, text);
    }
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|e| {
        let place = e.location().map(|at| (at.line(), at.column()));
        misread(path, text, place, &UserMessageFormatter.format_message(&e))
    })
}

/// Where item `number` (from 0) of the list `case` is in the text of a file of cases, in TOML or YAML as its name says; `None` if
/// it can't be told.
pub fn place_of_case(path: &Path, text: &str, number: usize) -> Option<(u64, u64)> {
    #[derive(Deserialize)]
    struct InToml {
        case: Vec<toml::Spanned<toml::Value>>,
    }
    #[derive(Deserialize)]
    struct InYaml {
        case: Vec<serde_saphyr::Spanned<serde_json::Value>>,
    }
    if is_yaml(path) {
        let options = serde_saphyr::options! { with_snippet: false };
        let all: InYaml = serde_saphyr::from_str_with_options(text, options).ok()?;
        let at = all.case.get(number)?.referenced;
        return Some((at.line(), at.column()));
    }
    let all: InToml = toml::from_str(text).ok()?;
    Some(place(text, all.case.get(number)?.span().start))
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml")
}

/// Reads a file of JSON, of so many bytes at most, as it is: what it says is for others to read.
pub fn json_text(path: &Path, bytes_max: usize) -> Result<String, Failure> {
    let text = read_within(path, bytes_max)?;
    match serde_json::from_str::<IgnoredAny>(&text) {
        Ok(_) => Ok(text),
        Err(e) => {
            // Its own words end in the place.
            let told = e.to_string();
            let told = told.split(" at line ").next().unwrap_or_default();
            let place = (e.line() as u64, e.column().max(1) as u64);
            Err(misread(path, &text, Some(place), &format!("this is not JSON: {told}")))
        }
    }
}

/// Line and column, from 1, of the byte at `offset`.
pub fn place(text: &str, offset: usize) -> (u64, u64) {
    let before = text.get(..text.floor_char_boundary(offset)).unwrap_or_default();
    let line = before.matches('\n').count() as u64 + 1;
    (line, before.rsplit('\n').next().unwrap_or_default().chars().count() as u64 + 1)
}

/// What is wrong with a file, with its place and its line.
pub fn misread(path: &Path, text: &str, place: Option<(u64, u64)>, message: &str) -> Failure {
    Failure::Refused(told(path, text, place, message))
}

/// The same in words.
pub fn told(path: &Path, text: &str, place: Option<(u64, u64)>, message: &str) -> String {
    let path = path.display();
    let message = output::clean(message);
    let Some((line, column)) = place else { return format!("{path}: {message}") };
    let shown = match (u32::try_from(line), u32::try_from(column)) {
        (Ok(line), Ok(column)) => caret(text, line, column),
        _ => None,
    };
    let shown: String = shown.iter().flat_map(|s| s.lines()).map(|l| format!("\n  {l}")).collect();
    format!("{path}:{line}:{column}: {message}{shown}")
}
