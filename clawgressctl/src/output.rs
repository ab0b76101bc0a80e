//! Printing: tables for people, JSON for programs. What agents' traffic has put into a record never
//! reaches the terminal as it is: control characters are shown, not sent.

use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use rustix::termios::tcgetwinsize;
use serde::Serialize;

use crate::failure::Failure;

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Prints a line. A reader that went away (`| head`) ends the command in peace.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::Refused(format!("cannot print: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Prints a value as JSON: on one line each for streams, else indented.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(&serde_json::to_string_pretty(value).map_err(|e| Failure::Refused(e.to_string()))?)
}

/// Prints a value as one line of JSON.
pub fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    line(&serde_json::to_string(value).map_err(|e| Failure::Refused(e.to_string()))?)
}

/// A word to the person at the terminal, beside the output.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// The message of a failure.
pub fn complain(text: &str) {
    note(&format!("clawgressctl: {text}"));
}

/// Prints rows under a header, as wide as the terminal.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if let Some(columns) = width() {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns);
    }
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    for text in table.lines() {
        // Without borders, each cell has a space on its left.
        line(text.strip_prefix(' ').unwrap_or(&text).trim_end())?;
    }
    Ok(())
}

fn width() -> Option<u16> {
    let out = io::stdout();
    if !out.is_terminal() {
        return None;
    }
    tcgetwinsize(&out).ok().map(|size| size.ws_col).filter(|columns| *columns > 0)
}

/// Text with control characters shown as escapes.
pub fn clean(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// A value that may be absent.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |v| v.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_in_records_do_not_reach_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\u{9b}\r\n"), "a\\u{1b}[2Jb\\u{9b}\\r\\n");
        assert_eq!(clean("grün"), "grün");
    }
}
