//! Characters that look like, or stand for, letters of ASCII; and those that nobody sees.

/// What a character is in a text that is read for what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folded {
    /// A letter or digit of ASCII, in lowercase; and whether it is a lookalike from Cyrillic or Greek.
    Letter(u8, bool),
    /// A letter of another alphabet.
    Other(char),
    /// A mark that is a word of its own: `<`, `[`, `|`, `#`.
    Mark(u8),
    /// An apostrophe, or an accent of its own: as if it were not there.
    Nothing,
    /// Nobody sees it.
    Invisible,
    /// A tag character, which stands for this one of ASCII.
    Tag(u8),
    /// It selects how the one before it is drawn.
    Variation,
    /// It turns the direction of what follows; and whether for letters that have one of their own, too.
    Bidi(bool),
    /// It is drawn as a blank, and is none: between words, and inside one a sign.
    Hollow,
    /// Between words.
    Blank,
}

/// Folds a character that is not ASCII.
#[must_use]
pub fn fold(c: char) -> Folded {
    match c {
        '\u{200b}'..='\u{200d}'
        | '\u{2060}'..='\u{2064}'
        | '\u{feff}'
        | '\u{ad}'
        | '\u{180e}'
        | '\u{34f}' => Folded::Invisible,
        // Marks of a direction, which stand between words, and what ends an embedding or isolates no longer.
        '\u{200e}' | '\u{200f}' | '\u{61c}' | '\u{202c}' | '\u{2069}' => Folded::Invisible,
        // Fillers of Hangul and vowels of Khmer that are not drawn, formats that nobody uses any more, annotations, beams of notes
        // (Unicode's `Default_Ignorable_Code_Point`).
        '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{17b4}' | '\u{17b5}' => Folded::Invisible,
        '\u{2065}' | '\u{206a}'..='\u{206f}' | '\u{fff0}'..='\u{fffb}' => Folded::Invisible,
        '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' => Folded::Invisible,
        '\u{2800}' => Folded::Hollow,
        '\u{202d}' | '\u{202e}' => Folded::Bidi(true),
        '\u{202a}' | '\u{202b}' | '\u{2066}'..='\u{2068}' => Folded::Bidi(false),
        '\u{e0020}'..='\u{e007e}' => Folded::Tag(u8::try_from(u32::from(c) - 0xe_0000).unwrap_or_default()),
        '\u{e0001}' | '\u{e007f}' => Folded::Tag(0),
        '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}' => Folded::Variation,
        '\u{2018}' | '\u{2019}' | '\u{2bc}' | '\u{300}'..='\u{36f}' => Folded::Nothing,
        // Other accents and rings, of letters and of signs.
        '\u{483}'..='\u{489}' | '\u{1ab0}'..='\u{1aff}' | '\u{1dc0}'..='\u{1dff}' => Folded::Nothing,
        '\u{20d0}'..='\u{20ff}' | '\u{fe20}'..='\u{fe2f}' => Folded::Nothing,
        'Ａ'..='Ｚ' | 'ａ'..='ｚ' | '０'..='９' => letter(u32::from(c) - 0xfee0, false),
        // Mathematical letters: alphabets of 52 that follow one another, then digits.
        '\u{1d400}'..='\u{1d6a3}' => {
            let place = (u32::from(c) - 0x1_d400) % 52;
            letter(if place < 26 { 0x41 + place } else { 0x61 + place - 26 }, false)
        }
        '\u{1d7ce}'..='\u{1d7ff}' => letter(0x30 + (u32::from(c) - 0x1_d7ce) % 10, false),
        'Ⓐ'..='Ⓩ' => letter(0x41 + u32::from(c) - 0x24b6, false),
        'ⓐ'..='ⓩ' => letter(0x61 + u32::from(c) - 0x24d0, false),
        '\u{1f130}'..='\u{1f149}' => letter(0x41 + u32::from(c) - 0x1_f130, false),
        '\u{1f170}'..='\u{1f189}' => letter(0x41 + u32::from(c) - 0x1_f170, false),
        'À'..='ɏ' => accented(c),
        '\u{370}'..='\u{3ff}' | '\u{400}'..='\u{52f}' => lookalike(c),
        '\u{250}'..='\u{2b8}' | '\u{2e1}'..='\u{2e3}' | '\u{1d00}'..='\u{1dbb}' | '\u{2071}'..='\u{207f}' => {
            small(c)
        }
        '\u{2102}'..='\u{2134}' | '\u{a730}' | '\u{a731}' | '\u{a7af}' => small(c),
        '\u{1f150}'..='\u{1f169}' => letter(0x41 + u32::from(c) - 0x1_f150, false),
        '\u{249c}'..='\u{24b5}' => letter(0x41 + u32::from(c) - 0x249c, false),
        c if c.is_alphanumeric() => Folded::Other(c),
        _ => Folded::Blank,
    }
}

fn letter(code: u32, is_lookalike: bool) -> Folded {
    u8::try_from(code).map_or(Folded::Blank, |byte| Folded::Letter(byte.to_ascii_lowercase(), is_lookalike))
}

/// Letters of Latin with accents, in the order of Unicode's decompositions.
fn accented(c: char) -> Folded {
    let plain = match c {
        'À'..='Æ' | 'à'..='æ' | 'Ā'..='ą' | 'Ǎ' | 'ǎ' => b'a',
        'Ç' | 'ç' | 'Ć'..='č' => b'c',
        'Ď'..='đ' => b'd',
        'È'..='Ë' | 'è'..='ë' | 'Ē'..='ě' => b'e',
        'Ĝ'..='ģ' => b'g',
        'Ĥ'..='ħ' => b'h',
        'Ì'..='Ï' | 'ì'..='ï' | 'Ĩ'..='ı' => b'i',
        'Ĵ' | 'ĵ' => b'j',
        'Ķ'..='ĸ' => b'k',
        'Ĺ'..='ł' => b'l',
        'Ñ' | 'ñ' | 'Ń'..='ŋ' => b'n',
        'Ò'..='Ö' | 'Ø' | 'ò'..='ö' | 'ø' | 'Ō'..='œ' => b'o',
        'Ŕ'..='ř' => b'r',
        'ß' | 'Ś'..='š' => b's',
        'Ţ'..='ŧ' => b't',
        'Ù'..='Ü' | 'ù'..='ü' | 'Ũ'..='ų' => b'u',
        'Ŵ' | 'ŵ' => b'w',
        'Ý' | 'ý' | 'ÿ' | 'Ŷ'..='Ÿ' => b'y',
        'Ź'..='ž' => b'z',
        '×' | '÷' => return Folded::Blank,
        c => return Folded::Other(c),
    };
    Folded::Letter(plain, false)
}

/// Letters of Latin that are capitals of small size, raised, of script, or drawn for phonetics as they are elsewhere.
fn small(c: char) -> Folded {
    let plain = match c {
        'ᴀ' | 'ɑ' | 'ᵃ' => b'a',
        'ʙ' | 'ᵇ' | 'ℬ' => b'b',
        'ᴄ' | 'ᶜ' | 'ℂ' | 'ℭ' => b'c',
        'ᴅ' | 'ᵈ' => b'd',
        'ᴇ' | 'ᵉ' | 'ℯ' | 'ℰ' => b'e',
        'ꜰ' | 'ᶠ' | 'ℱ' => b'f',
        'ɡ' | 'ɢ' | 'ᵍ' | 'ℊ' => b'g',
        'ʜ' | 'ʰ' | 'ℋ' | 'ℌ' | 'ℍ' | 'ℎ' | 'ℏ' => b'h',
        'ɪ' | 'ⁱ' | 'ℐ' | 'ℑ' => b'i',
        'ᴊ' | 'ʲ' => b'j',
        'ᴋ' | 'ᵏ' => b'k',
        'ʟ' | 'ˡ' | 'ℒ' | 'ℓ' => b'l',
        'ᴍ' | 'ᵐ' | 'ℳ' => b'm',
        'ɴ' | 'ⁿ' | 'ℕ' => b'n',
        'ᴏ' | 'ᵒ' | 'ℴ' => b'o',
        'ᴘ' | 'ᵖ' | 'ℙ' => b'p',
        'ꞯ' | 'ℚ' => b'q',
        'ʀ' | 'ʳ' | 'ℛ' | 'ℜ' | 'ℝ' => b'r',
        'ꜱ' | 'ˢ' => b's',
        'ᴛ' | 'ᵗ' => b't',
        'ᴜ' | 'ᵘ' => b'u',
        'ᴠ' | 'ᵛ' => b'v',
        'ᴡ' | 'ʷ' => b'w',
        'ˣ' => b'x',
        'ʏ' | 'ʸ' => b'y',
        'ᴢ' | 'ᶻ' | 'ℤ' | 'ℨ' => b'z',
        c if c.is_alphanumeric() => return Folded::Other(c),
        _ => return Folded::Blank,
    };
    Folded::Letter(plain, false)
}

/// Letters of Greek and Cyrillic that look like one of Latin.
fn lookalike(c: char) -> Folded {
    let plain = match c {
        'Α' | 'α' | 'А' | 'а' => b'a',
        'Β' | 'В' | 'в' => b'b',
        'С' | 'с' | 'ϲ' => b'c',
        'ԁ' => b'd',
        'Ε' | 'Е' | 'е' | 'ё' | 'Ё' => b'e',
        'Η' | 'Н' | 'һ' => b'h',
        'Ι' | 'ι' | 'І' | 'і' | 'ї' | 'Ї' => b'i',
        'Ј' | 'ј' | 'ϳ' => b'j',
        'Κ' | 'κ' | 'К' | 'к' => b'k',
        'Ӏ' | 'ӏ' => b'l',
        'Μ' | 'М' | 'м' => b'm',
        'Ν' => b'n',
        'Ο' | 'ο' | 'О' | 'о' => b'o',
        'Ρ' | 'ρ' | 'Р' | 'р' => b'p',
        'ԛ' => b'q',
        'Ѕ' | 'ѕ' => b's',
        'Τ' | 'τ' | 'Т' | 'т' => b't',
        'υ' => b'u',
        'ν' | 'ѵ' => b'v',
        'ԝ' | 'ω' => b'w',
        'Χ' | 'χ' | 'Х' | 'х' => b'x',
        'Υ' | 'У' | 'у' => b'y',
        'Ζ' => b'z',
        c if c.is_alphanumeric() => return Folded::Other(c),
        _ => return Folded::Blank,
    };
    Folded::Letter(plain, true)
}
