//! Sizes and rates as people write them: `64M` is 64 times 1024 times 1024.

const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

/// A number of bytes: digits, then nothing or one of `K M G T` (powers of 1024; lower case will do).
///
/// # Errors
/// Says what is expected.
pub fn parse(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size: use a number, with K, M, G or T for powers of 1024");
    let (digits, shift) = match text.chars().last() {
        Some(last) if last.is_ascii_alphabetic() => {
            let unit = last.to_ascii_uppercase();
            let (_, shift) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
            (&text[..text.len() - 1], *shift)
        }
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let number: u64 = digits.parse().map_err(|_| format!("{text} is too large"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text} is too large"))
}

/// A number of bytes for people: `512 B`, `1.50 MiB`.
pub fn show(bytes: u64) -> String {
    match UNITS.iter().rev().find(|(_, shift)| bytes >> shift != 0) {
        None => format!("{bytes} B"),
        Some((name, shift)) => {
            let whole = bytes >> shift;
            let hundredths = ((u128::from(bytes) * 100) >> shift) % 100;
            format!("{whole}.{hundredths:02} {name}iB")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("4K", 4096),
            ("64M", 64 << 20),
            ("1G", 1 << 30),
            ("2t", 2 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "K",
            "-1",
            "+1",
            "1.5G",
            "1 G",
            "1KB",
            "1X",
            "0x10",
            "ä",
            "99999999999999999999",
            "16777216T",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_cut_not_rounded_up() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536 << 10, "1.50 MiB"),
            ((1 << 30) - 1, "1023.99 MiB"),
            (u64::MAX, "16777215.99 TiB"),
        ] {
            assert_eq!(show(bytes), text);
        }
    }
}
