//! Fields of forms that call models, by the heads of their parts. Must never take a name that parsers read in two ways.

use super::CallError;

/// What a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Whether it is a file.
    pub is_file: bool,
}

impl Field {
    /// Of the head of a part; `None` for one that has no name.
    ///
    /// # Errors
    /// If it is said more than once, or in a way that some parsers don't read (RFC 5987).
    pub fn of(head: &[u8]) -> Result<Option<Field>, CallError> {
        let head = std::str::from_utf8(head).map_err(|_| CallError::Name)?;
        let lines = head.split('\n').filter_map(|line| line.split_once(':'));
        let mut all = lines.filter(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"));
        let Some((_, said)) = all.next() else { return Ok(None) };
        if all.next().is_some() {
            return Err(CallError::Twice);
        }
        let (mut name, mut is_file) = (None, false);
        let mut rest = said.trim_end().split_once(';').map_or("", |(_, rest)| rest);
        while !rest.trim().is_empty() {
            let (key, after) = rest.split_once('=').ok_or(CallError::Name)?;
            let (value, after) = value(after)?;
            match key.trim().to_ascii_lowercase().as_str() {
                "name" if name.is_some() => return Err(CallError::Twice),
                "name" => name = Some(value),
                "filename" | "filename*" => is_file = true,
                other if other.contains("name") => return Err(CallError::Name),
                _ => {}
            }
            let after = after.trim_start();
            rest = match after.strip_prefix(';') {
                Some(rest) => rest,
                None if after.is_empty() => after,
                None => return Err(CallError::Name),
            };
        }
        Ok(name.map(|name| Field { name, is_file }))
    }
}

/// The value of a parameter, and what follows it.
fn value(text: &str) -> Result<(String, &str), CallError> {
    let Some(quoted) = text.trim_start().strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        let (value, rest) = text.split_at_checked(end).unwrap_or((text, ""));
        return Ok((value.trim().to_owned(), rest));
    };
    // What a backslash means, parsers differ in.
    let (value, rest) =
        quoted.split_once('"').filter(|(value, _)| !value.contains('\\')).ok_or(CallError::Name)?;
    Ok((value.to_owned(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_one_way() {
        let of = |said: &str| Field::of(format!("Content-Disposition: form-data{said}\r\n").as_bytes());
        let field = |name: &str, is_file| Ok(Some(Field { name: name.to_owned(), is_file }));
        assert_eq!(of("; name=\"model\""), field("model", false));
        assert_eq!(of("; name=model"), field("model", false));
        assert_eq!(of("; name=\"file\"; filename=\"a; name=b.wav\""), field("file", true));
        assert_eq!(of("; filename=x ; name=file"), field("file", true));
        assert_eq!(of(""), Ok(None));
        assert_eq!(Field::of(b"Content-Type: x/y\r\n"), Ok(None));
        for (said, error) in [
            ("; name=a; name=b", CallError::Twice),
            ("; name*=utf-8''a", CallError::Name),
            ("; name=\"a\\\"b\"", CallError::Name),
            ("; name=\"a", CallError::Name),
            ("; name=\"a\"b", CallError::Name),
            ("; name", CallError::Name),
        ] {
            assert_eq!(of(said), Err(error), "{said}");
        }
        let twice = b"Content-Disposition: a; name=b\r\nContent-Disposition: a; name=c\r\n";
        assert_eq!(Field::of(twice), Err(CallError::Twice));
    }
}
