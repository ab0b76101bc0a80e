//! Streams of events (WHATWG HTML section 9.2.6): where they end, and their data changed. Must never change an event that nothing
//! was to be changed of.

/// Where events of a stream end, looked for once in each byte of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ends {
    /// Up to where it was looked.
    at: usize,
    is_in_line: bool,
}

impl Ends {
    /// Where the last whole event of what came so far ends, and is taken off by the next call: what is behind it waits for
    /// more.
    pub fn next(&mut self, text: &[u8]) -> usize {
        let mut end = 0;
        while let Some(byte) = text.get(self.at) {
            #[cfg(test)]
            crate::steps::add(1);
            match byte {
                // The second half of what may be a CRLF has not come yet.
                b'\r' if self.at + 1 == text.len() => break,
                b'\r' | b'\n' => {
                    self.at += if *byte == b'\r' && text.get(self.at + 1) == Some(&b'\n') { 2 } else { 1 };
                    if !std::mem::take(&mut self.is_in_line) {
                        end = self.at;
                    }
                }
                _ => {
                    self.is_in_line = true;
                    self.at += 1;
                }
            }
        }
        self.at -= end;
        end
    }
}

/// Has the data of each event of a stream that is whole looked at; `None` if that changed none. What is changed is said again in
/// lines of its own, behind the other fields of its event, which without data is none; all else stays as it is.
///
/// # Errors
/// The first that `change` has.
pub fn changed<E>(
    text: &str,
    change: &mut dyn FnMut(&str) -> Result<Option<String>, E>,
) -> Result<Option<String>, E> {
    let (mut out, mut is_changed) = (String::with_capacity(text.len()), false);
    let (mut event, mut data) = (Vec::new(), Vec::new());
    let mut rest = text;
    while !rest.is_empty() {
        let (line, behind) = line(rest);
        rest = behind;
        #[cfg(test)]
        crate::steps::add(line.len());
        let bare = line.trim_end_matches(['\r', '\n']);
        event.push(line);
        if let Some(value) = field(bare) {
            data.push(value);
        }
        if !bare.is_empty() && !rest.is_empty() {
            continue;
        }
        // What has no blank line behind it is no event yet; clients differ, so it is looked at like one.
        #[cfg(test)]
        crate::steps::add(event.len() + data.iter().map(|value| value.len()).sum::<usize>());
        if let Some(other) = change(&data.join("\n"))? {
            is_changed = true;
            let others = event.iter().filter(|line| field(line.trim_end_matches(['\r', '\n'])).is_none());
            others.filter(|line| !line.trim().is_empty()).for_each(|line| out.push_str(line));
            for line in other.split(['\r', '\n']).filter(|_| !other.is_empty()) {
                out.push_str("data: ");
                out.push_str(line);
                out.push('\n');
            }
            out.push('\n');
        } else {
            event.iter().for_each(|line| out.push_str(line));
        }
        event.clear();
        data.clear();
    }
    Ok(is_changed.then_some(out))
}

/// The first line with its end: CRLF, LF or CR; and what follows.
fn line(text: &str) -> (&str, &str) {
    let bytes = text.as_bytes();
    let end = match bytes.iter().position(|b| matches!(b, b'\r' | b'\n')) {
        Some(at) if bytes.get(at) == Some(&b'\r') && bytes.get(at + 1) == Some(&b'\n') => at + 2,
        Some(at) => at + 1,
        None => bytes.len(),
    };
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// The value of a line of data.
fn field(line: &str) -> Option<&str> {
    // Only the first line may begin with a mark of byte order.
    let line = line.strip_prefix('\u{feff}').unwrap_or(line);
    if line == "data" {
        return Some("");
    }
    let value = line.strip_prefix("data:")?;
    Some(value.strip_prefix(' ').unwrap_or(value))
}
