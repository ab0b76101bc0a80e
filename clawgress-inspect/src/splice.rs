//! Documents of JSON changed where they lie: some bytes are replaced, and all others stay as they are, so that no number,
//! escape or blank becomes another.
//!
//! For documents that were read as JSON before: what is none has no parts here, and is never changed. Must never write a value
//! again that was not to be changed.

use std::ops::Range;

use crate::tool::Value;

/// Where a value is in its document.
pub type Span = Range<usize>;

/// A member of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Without escapes.
    pub name: String,
    /// From its name to the end of its value.
    pub whole: Span,
    /// Its value.
    pub value: Span,
}

/// Changes of one document: none lies within another.
#[derive(Clone, Debug, Default)]
pub struct Edits(Vec<(Span, Vec<u8>)>);

/// Where in a document its one value is.
#[must_use]
pub fn root(text: &[u8]) -> Option<Span> {
    let start = skip(text, 0);
    let end = end_of(text, start)?;
    (skip(text, end) == text.len()).then_some(start..end)
}

/// The members of the object that is here; `None` if there is none.
#[must_use]
pub fn members(text: &[u8], at: &Span) -> Option<Vec<Member>> {
    let (mut members, mut next) = (Vec::new(), inside(text, at, b'{', b'}')?);
    while let Some(start) = next {
        let colon = end_of(text, start)?;
        let name = Value::parse(text.get(start..colon)?).ok()?.text()?.to_owned();
        let colon = skip(text, colon);
        (text.get(colon) == Some(&b':')).then_some(())?;
        let value = skip(text, colon + 1);
        let end = end_of(text, value)?;
        members.push(Member { name, whole: start..end, value: value..end });
        next = behind(text, end, b'}')?;
    }
    Some(members)
}

/// The items of the array that is here; `None` if there is none.
#[must_use]
pub fn items(text: &[u8], at: &Span) -> Option<Vec<Span>> {
    let (mut items, mut next) = (Vec::new(), inside(text, at, b'[', b']')?);
    while let Some(start) = next {
        let end = end_of(text, start)?;
        items.push(start..end);
        next = behind(text, end, b']')?;
    }
    Some(items)
}

/// The value that these names lead to, each of one object.
#[must_use]
pub fn find(text: &[u8], path: &[&str]) -> Option<Span> {
    path.iter().try_fold(root(text)?, |at, name| {
        members(text, &at)?.into_iter().find(|member| member.name == *name).map(|member| member.value)
    })
}

/// A text as JSON has it.
#[must_use]
pub fn quoted(text: &str) -> Vec<u8> {
    Value::Text(text.to_owned()).json().into_bytes()
}

// === impl Edits ===

impl Edits {
    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Replaces a value.
    pub fn replace(&mut self, at: Span, with: impl Into<Vec<u8>>) {
        self.0.push((at, with.into()));
    }

    /// Puts something before what is here.
    pub fn insert(&mut self, at: usize, what: impl Into<Vec<u8>>) {
        self.0.push((at..at, what.into()));
    }

    /// Puts a member before the others of the object that is here.
    pub fn add(&mut self, text: &[u8], object: &Span, name: &str, value: &[u8]) {
        let mut member = quoted(name);
        member.push(b':');
        member.extend_from_slice(value);
        self.first(text, object, member);
    }

    /// Puts an item before the others of the array that is here.
    pub fn prepend(&mut self, text: &[u8], array: &Span, item: &[u8]) {
        self.first(text, array, item.to_vec());
    }

    fn first(&mut self, text: &[u8], at: &Span, mut part: Vec<u8>) {
        let inside = skip(text, at.start + 1);
        if !matches!(text.get(inside), Some(b'}' | b']')) {
            part.push(b',');
        }
        self.insert(at.start + 1, part);
    }

    /// Keeps of the parts of an object or array those alone that `stay`.
    pub fn keep(&mut self, text: &[u8], parts: &[Span], stay: impl Fn(usize) -> bool) {
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return };
        let kept: Vec<&[u8]> = parts
            .iter()
            .enumerate()
            .filter(|(n, _)| stay(*n))
            .filter_map(|(_, part)| text.get(part.clone()))
            .collect();
        if kept.len() < parts.len() {
            self.replace(first.start..last.end, kept.join(&b','));
        }
    }

    /// The document, changed.
    #[must_use]
    pub fn apply(mut self, text: &[u8]) -> Vec<u8> {
        // What is put in at one place stays in the order it was put in.
        self.0.sort_by_key(|(at, _)| at.start);
        let more: usize = self.0.iter().map(|(_, with)| with.len()).sum();
        let (mut out, mut from) = (Vec::with_capacity(text.len() + more), 0);
        for (at, with) in self.0 {
            out.extend_from_slice(text.get(from..at.start).unwrap_or_default());
            out.extend_from_slice(&with);
            from = from.max(at.end);
        }
        out.extend_from_slice(text.get(from..).unwrap_or_default());
        out
    }
}

/// Behind blanks.
fn skip(text: &[u8], from: usize) -> usize {
    let rest = text.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|b| matches!(**b, b' ' | b'\t' | b'\r' | b'\n')).count()
}

/// Where the first part of what is here begins; `Some(None)` if it has none.
fn inside(text: &[u8], at: &Span, opens: u8, closes: u8) -> Option<Option<usize>> {
    (text.get(at.start) == Some(&opens)).then_some(())?;
    let first = skip(text, at.start + 1);
    Some((text.get(first) != Some(&closes)).then_some(first))
}

/// Where the part behind one that ends here begins; `Some(None)` if it was the last.
fn behind(text: &[u8], end: usize, closes: u8) -> Option<Option<usize>> {
    let at = skip(text, end);
    match text.get(at)? {
        b',' => Some(Some(skip(text, at + 1))),
        byte if *byte == closes => Some(None),
        _ => None,
    }
}

/// Where the value ends that begins here.
fn end_of(text: &[u8], start: usize) -> Option<usize> {
    let (mut at, mut depth) = (start, 0_usize);
    loop {
        #[cfg(test)]
        crate::steps::add(1);
        match text.get(at)? {
            b'"' => {
                at += 1;
                loop {
                    #[cfg(test)]
                    crate::steps::add(1);
                    match text.get(at)? {
                        b'"' => break,
                        b'\\' => at += 2,
                        _ => at += 1,
                    }
                }
                at += 1;
            }
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' => {
                if depth == 0 {
                    return None;
                }
                at += 1;
            }
            _ => {
                let rest = text.get(at..)?;
                let is_word = |b: &&u8| {
                    !matches!(
                        **b,
                        b',' | b':' | b'}' | b']' | b'{' | b'[' | b'"' | b' ' | b'\t' | b'\r' | b'\n'
                    )
                };
                at += rest.iter().take_while(is_word).count();
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str =
        " { \"a\" : 1.50e+3 ,\"b\\u0021\":[ 1,\"x,]\\\"\" , {\"c\":null} ],\"d\":{} , \"e\":[]} ";

    #[test]
    fn parts_are_found_where_they_are() {
        let text = TEXT.as_bytes();
        let of = |span: &Span| std::str::from_utf8(&text[span.clone()]).unwrap();
        let all = members(text, &root(text).unwrap()).unwrap();
        let told: Vec<_> = all.iter().map(|m| (m.name.as_str(), of(&m.value))).collect();
        assert_eq!(
            told,
            [("a", "1.50e+3"), ("b!", "[ 1,\"x,]\\\"\" , {\"c\":null} ]"), ("d", "{}"), ("e", "[]")]
        );
        let array = items(text, &all[1].value).unwrap();
        assert_eq!(array.iter().map(of).collect::<Vec<_>>(), ["1", "\"x,]\\\"\"", "{\"c\":null}"]);
        assert_eq!(items(text, &all[3].value), Some(Vec::new()));
        assert_eq!(members(text, &all[1].value), None);
        assert_eq!(find(text, &["d"]).map(|at| of(&at)), Some("{}"));
        assert_eq!(find(text, &["d", "x"]), None);
        for none in ["", "{", "{\"a\"}", "[1", "1 2", "{\"a\":}", "]", "\"\\", "{\"a\":1 \"b\":2}"] {
            let found = root(none.as_bytes()).and_then(|at| members(none.as_bytes(), &at));
            assert_eq!(found, None, "{none}");
        }
    }

    #[test]
    fn only_what_is_changed_changes() {
        let text = TEXT.as_bytes();
        let root = root(text).unwrap();
        let all = members(text, &root).unwrap();
        let mut edits = Edits::default();
        edits.add(text, &root, "new", b"true");
        edits.replace(all[0].value.clone(), "2");
        let array = items(text, &all[1].value).unwrap();
        edits.keep(text, &array, |n| n != 1);
        edits.prepend(text, &all[3].value, b"7");
        edits.add(text, &all[2].value, "in", b"1");
        let changed = String::from_utf8(edits.apply(text)).unwrap();
        assert_eq!(
            changed,
            " {\"new\":true, \"a\" : 2 ,\"b\\u0021\":[ 1,{\"c\":null} ],\"d\":{\"in\":1} , \"e\":[7]} "
        );
        let mut none = Edits::default();
        none.keep(text, &array, |_| true);
        assert!(none.is_empty() && none.apply(text) == text);
        let mut emptied = Edits::default();
        emptied.keep(text, &array, |_| false);
        assert!(String::from_utf8(emptied.apply(text)).unwrap().contains("[  ]"));
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(text in proptest::collection::vec(proptest::sample::select(b"{}[]\",:\\ 1a".to_vec()), 0..60)) {
            if let Some(at) = root(&text) {
                let _ = (members(&text, &at), items(&text, &at));
            }
        }
    }
}
