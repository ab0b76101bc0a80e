//! Times on the command line: moments, and how long something lasts.

use jiff::{Span, Timestamp, Zoned};

/// A past moment: a time, or how long ago.
pub fn past(text: &str) -> Result<Timestamp, String> {
    let age = |span| Zoned::now().checked_sub(span);
    moment(text, age).ok_or_else(|| {
        format!("`{text}` is neither a time such as `2026-11-22T14:00Z` nor an age such as `15m`")
    })
}

/// A moment that lies ahead: a time, or how long from now.
pub fn ahead(text: &str) -> Result<Timestamp, String> {
    let ahead = |span| Zoned::now().checked_add(span);
    moment(text, ahead).ok_or_else(|| {
        format!("`{text}` is neither a time such as `2027-01-31T00:00Z` nor from now on, such as `90d`")
    })
}

fn moment(text: &str, from_now: impl Fn(Span) -> Result<Zoned, jiff::Error>) -> Option<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    let span: Span = text.parse().ok().filter(|span: &Span| span.is_positive())?;
    from_now(span).ok().map(|then| then.timestamp())
}

/// A time of whole seconds, minutes, hours or days, in seconds.
pub fn seconds(text: &str) -> Result<u64, String> {
    let error = || format!("`{text}` is not a time: write such as `90s`, `15m`, `2h` or `1d`");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..) {
        Some("s") => 1,
        Some("m") => 60,
        Some("h") => 60 * 60,
        Some("d") => 24 * 60 * 60,
        _ => return Err(error()),
    };
    let number = digits.parse::<u64>().ok().filter(|n| *n > 0 && digits.bytes().all(|b| b.is_ascii_digit()));
    number.and_then(|n| n.checked_mul(unit)).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, wanted) in [("1s", 1), ("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86_400)] {
            assert_eq!(seconds(text), Ok(wanted));
        }
        for text in
            ["", "15", "m", "0m", "-1m", "+1m", "1.5h", "1w", "15 m", "99999999999999999999d", "1mm", "é"]
        {
            let said = seconds(text).expect_err(text);
            assert!(said.ends_with("write such as `90s`, `15m`, `2h` or `1d`"), "{said}");
        }
    }

    #[test]
    fn moments() {
        let time = "2026-11-22T14:00:00Z".parse::<Timestamp>().expect("time");
        assert_eq!((past("2026-11-22T14:00Z"), ahead("2026-11-22T14:00Z")), (Ok(time), Ok(time)));
        let now = Zoned::now().timestamp();
        assert!(past("15m").expect("age") < now && ahead("90d").expect("ahead") > now);
        for text in ["", "yesterday", "15", "-15m", "15m ago", "0s", "2026-13-01T00:00Z"] {
            assert!(past(text).is_err() && ahead(text).is_err(), "{text}");
        }
    }
}
