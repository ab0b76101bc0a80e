//! How evenly letters are used: Shannon's entropy of a histogram.

/// Entropy of what was counted, hundredths of a bit for each; 0 for nothing.
#[must_use]
pub fn hundredth_bits(counts: &[u32]) -> u32 {
    let all: f64 = counts.iter().map(|n| f64::from(*n)).sum();
    if all == 0.0 {
        return 0;
    }
    let of = |n: &u32| {
        let p = f64::from(*n) / all;
        -p * p.log2()
    };
    let bits: f64 = counts.iter().filter(|n| **n > 0).map(of).sum();
    // At most 8 bits for bytes, so 800.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 3200, rounded")]
    let hundredths = (bits * 100.0).round() as u32;
    hundredths
}

/// The same of a text.
#[must_use]
pub fn of_bytes(bytes: &[u8]) -> u32 {
    let mut counts = [0_u32; 256];
    for byte in bytes {
        if let Some(count) = counts.get_mut(usize::from(*byte)) {
            *count = count.saturating_add(1);
        }
    }
    hundredth_bits(&counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_use_has_most() {
        assert_eq!(of_bytes(b""), 0);
        assert_eq!(of_bytes(b"aaaa"), 0);
        assert_eq!(of_bytes(b"abab"), 100);
        assert_eq!(of_bytes(&(0..=255).collect::<Vec<u8>>()), 800);
    }
}
