//! Numbers in headers and records.
//!
//! Header fields are octal text padded with spaces and zero bytes, or, with the first bit set, a big-endian
//! two's complement number (GNU's "base-256"). Extended records are decimal text.

/// A numeric header field of at most 12 bytes; `None` if it is no number or does not fit.
pub(super) fn field(bytes: &[u8]) -> Option<i64> {
    match bytes.first() {
        Some(first) if first & 0x80 != 0 => base_256(bytes),
        _ => octal(bytes),
    }
}

/// An octal header field. An empty one is 0, as unused fields are.
pub(super) fn octal(bytes: &[u8]) -> Option<i64> {
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(first) = bytes.iter().position(|byte| !padding(byte)) else {
        return Some(0);
    };
    let last = bytes.iter().rposition(|byte| !padding(byte))?;
    let text = &bytes[first..=last];
    // A zero byte ends a field whatever stands behind it.
    let text = text.split(|&byte| byte == 0).next()?;
    text.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn base_256(bytes: &[u8]) -> Option<i64> {
    let (&first, rest) = bytes.split_first()?;
    // Bit 7 marks the encoding, bit 6 is the sign. Twelve bytes fit 128 bits with room to spare.
    let head = i128::from(first & 0x3F) - i128::from(first & 0x40);
    let value =
        rest.iter().try_fold(head, |value, &byte| value.checked_mul(256)?.checked_add(byte.into()))?;
    i64::try_from(value).ok()
}

/// A decimal number with nothing around it but an optional minus sign.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0i64, |value, digit| {
        let digit = i64::from(digit.is_ascii_digit().then(|| digit - b'0')?);
        let value = value.checked_mul(10)?;
        if negative { value.checked_sub(digit) } else { value.checked_add(digit) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields_are_trimmed_of_spaces_and_zeros() {
        for (bytes, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b" 644 \0\0\0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777", Some(0o7777_7777)),
            (b"12\x0034\0\0\0", Some(0o12)),
            (b"0000648\0", None),
            (b"-0000644", None),
            (b"0x1F\0\0\0\0", None),
        ] {
            assert_eq!(field(bytes), value, "{bytes:?}");
        }
    }

    #[test]
    fn base_256_fields_are_signed_and_bounded() {
        for (bytes, value) in [
            (&[0x80, 0, 0, 0, 0, 0, 1, 0][..], Some(256)),
            (&[0xFF; 8], Some(-1)),
            (&[0xFF; 12], Some(-1)),
            (&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0], Some(-256)),
            (&[0x80, 0, 0, 0, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF], Some(i64::MAX)),
            (&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0], None),
            (&[0xFF, 0xFF, 0xFF, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], Some(i64::MIN)),
            (&[0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF], None),
            (&[0xBF; 12], None),
        ] {
            assert_eq!(field(bytes), value, "{bytes:x?}");
        }
    }

    #[test]
    fn decimal_numbers_have_no_decoration() {
        for (text, value) in [
            (&b"0"[..], Some(0)),
            (b"007", Some(7)),
            (b"-5", Some(-5)),
            (b"9223372036854775807", Some(i64::MAX)),
            (b"-9223372036854775808", Some(i64::MIN)),
            (b"9223372036854775808", None),
            (b"", None),
            (b"-", None),
            (b"+5", None),
            (b" 5", None),
            (b"5.0", None),
        ] {
            assert_eq!(decimal(text), value, "{:?}", text.escape_ascii().to_string());
        }
    }
}
