//! Names as servers in Go compare them, which fold letters (Unicode simple folding).

/// `name` as all that fold to the same have it.
pub(crate) fn fold(name: &str) -> String {
    // No letter takes more bytes for it.
    let mut folded = String::with_capacity(name.len());
    folded.extend(name.chars().map(|c| match c {
        // The two letters outside ASCII that fold to one of it.
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    }));
    folded
}
