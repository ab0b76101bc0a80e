//! In which form a denial is told: what the client says that it takes (RFC 9110 section 12.5.1).

use std::fmt::Write as _;

/// What a page is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// In the shape in which model providers' clients show an error.
    #[default]
    Json,
    /// Lines for people.
    Text,
    /// For browsers.
    Html,
}

/// Ranges of an `Accept` that are looked at.
const RANGES_MAX: usize = 64;

// === impl Form ===

impl Form {
    /// In the order in which they are chosen where a client takes several as well.
    const ALL: [Form; 3] = [Form::Json, Form::Text, Form::Html];

    /// What these `Accept` fields like best; JSON where they like nothing that there is.
    pub fn of<'a>(accept: impl Iterator<Item = &'a str>) -> Form {
        let ranges: Vec<_> =
            accept.flat_map(|field| field.split(',')).take(RANGES_MAX).filter_map(range).collect();
        let liked = |form: &Form| {
            let (kind, subtype) = form.names();
            // The narrowest range that has it counts.
            let fitting = ranges.iter().filter_map(|(of, weight)| {
                let narrow = match of.split_once('/')? {
                    (k, s) if k.eq_ignore_ascii_case(kind) && s.eq_ignore_ascii_case(subtype) => 2,
                    (k, "*") if k.eq_ignore_ascii_case(kind) => 1,
                    ("*", "*") => 0,
                    _ => return None,
                };
                Some((narrow, *weight))
            });
            fitting.max().map(|(narrow, weight)| (weight, narrow))
        };
        let mut best = (Form::Json, (0, 0));
        for form in Form::ALL {
            if let Some(much) = liked(&form).filter(|much| *much > best.1) {
                best = (form, much);
            }
        }
        best.0
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Form::Json => ("application", "json"),
            Form::Text => ("text", "plain"),
            Form::Html => ("text", "html"),
        }
    }

    /// `Content-Type`.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Form::Json => "application/json",
            Form::Text => "text/plain; charset=utf-8",
            Form::Html => "text/html; charset=utf-8",
        }
    }
}

/// A range and its weight in thousandths; `None` for what is none.
fn range(text: &str) -> Option<(&str, u16)> {
    let mut parts = text.split(';').map(str::trim_ascii);
    let range = parts.next().filter(|range| range.contains('/'))?;
    let weight = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim_ascii().eq_ignore_ascii_case("q").then(|| value.trim_ascii())
    });
    let Some(weight) = weight else { return Some((range, 1000)) };
    let value: f32 = weight.parse().ok().filter(|value| (0.0..=1.0).contains(value))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
    Some((range, (value * 1000.0) as u16))
}

/// `text` as it may stand in HTML, within elements and attributes alike.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' | '<' | '>' | '"' | '\'' => {
                let _ = write!(out, "&#{};", u32::from(letter));
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_take_is_what_they_get() {
        for (accept, want) in [
            (&[][..], Form::Json),
            (&["*/*"], Form::Json),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], Form::Html),
            (&["application/json, text/plain, */*"], Form::Json),
            (&["text/plain"], Form::Text),
            (&["text/*"], Form::Text),
            (&["TEXT/HTML"], Form::Html),
            (&["text/plain;q=0.5, text/html;q=0.9"], Form::Html),
            (&["text/plain; q=0.9", "application/json;q=0.1"], Form::Text),
            (&["text/html;level=1;q=0.4, application/json;q=0.3"], Form::Html),
            // Taken out of what would have it.
            (&["application/json;q=0, */*"], Form::Text),
            (&["text/html, application/json;q=0"], Form::Html),
            (&["*/*;q=0"], Form::Json),
            (&["image/png"], Form::Json),
            (&["text/html;q=2, text/plain;q=x, ;;, /, q=1"], Form::Json),
        ] {
            assert_eq!(Form::of(accept.iter().copied()), want, "{accept:?}");
        }
        let many = "text/html;q=0.1,".repeat(1_000_000);
        assert_eq!(Form::of(std::iter::once(&*many)), Form::Html);
    }

    #[test]
    fn nothing_gets_out_of_its_element() {
        assert_eq!(escaped("a<b>&\"'c ü"), "a&#60;b&#62;&#38;&#34;&#39;c ü");
    }
}
