//! Keys and values out of request targets: percent-decoding that neither truncates nor guesses. Pure.

/// A `%` that is not followed by two hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{found}\" at byte {position} is no percent-encoding; a percent sign itself is written %25"
)]
pub(super) struct BadEncoding {
    /// Its place in the encoded text.
    pub(super) position: usize,
    /// What stands there.
    pub(super) found: String,
}

/// Whether `+` is a space, as in forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plus {
    /// In a query.
    IsSpace,
    /// In a path.
    IsPlus,
}

/// The bytes that `encoded` stands for; they need not be UTF-8.
pub(super) fn percent_decode(encoded: &[u8], plus: Plus) -> Result<Vec<u8>, BadEncoding> {
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut position = 0;
    while let Some(&byte) = encoded.get(position) {
        let length = match byte {
            b'%' => {
                let digits = encoded.get(position + 1..position + 3);
                decoded.push(
                    digits
                        .and_then(hex_byte)
                        .ok_or_else(|| bad(encoded, position))?,
                );
                3
            }
            b'+' if plus == Plus::IsSpace => {
                decoded.push(b' ');
                1
            }
            other => {
                decoded.push(other);
                1
            }
        };
        position += length;
    }
    Ok(decoded)
}

/// The encoded value of the first parameter `value` in a query. `value` without `=` is empty; a further `=` belongs to the
/// value.
pub(super) fn value_parameter(query: &[u8]) -> Option<&[u8]> {
    query.split(|&byte| byte == b'&').find_map(|pair| {
        let equals = pair.iter().position(|&byte| byte == b'=');
        let (name, value) = match equals {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &pair[pair.len()..]),
        };
        let name = percent_decode(name, Plus::IsSpace).ok()?;
        (name == b"value").then_some(value)
    })
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    Some(digit(digits[0])? * 16 + digit(digits[1])?)
}

fn bad(encoded: &[u8], position: usize) -> BadEncoding {
    let found = &encoded[position..encoded.len().min(position + 3)];
    BadEncoding {
        position,
        found: found.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decodes_exactly() {
        let cases: [(&str, &[u8], &[u8]); 7] = [
            ("", b"", b""),
            ("a+b", b"a b", b"a+b"),
            ("a%2Bb%20c", b"a+b c", b"a+b c"),
            ("%00%ff%C3%A9", b"\0\xff\xc3\xa9", b"\0\xff\xc3\xa9"),
            ("%25", b"%", b"%"),
            ("a=b==", b"a=b==", b"a=b=="),
            ("%2525", b"%25", b"%25"),
        ];
        for (encoded, in_query, in_path) in cases {
            assert_eq!(
                percent_decode(encoded.as_bytes(), Plus::IsSpace).as_deref(),
                Ok(in_query)
            );
            assert_eq!(
                percent_decode(encoded.as_bytes(), Plus::IsPlus).as_deref(),
                Ok(in_path)
            );
        }
    }

    #[test]
    fn broken_encoding_is_named_with_its_place() {
        for (encoded, position, found) in [
            ("%", 0, "%"),
            ("ab%4", 2, "%4"),
            ("a%zzb", 1, "%zz"),
            ("%%41", 0, "%%4"),
            ("%+1", 0, "%+1"),
        ] {
            let expected = BadEncoding {
                position,
                found: found.to_owned(),
            };
            assert_eq!(
                percent_decode(encoded.as_bytes(), Plus::IsSpace),
                Err(expected),
                "{encoded}"
            );
        }
    }

    #[test]
    fn the_first_value_is_found_whole() {
        let cases: [(&str, Option<&str>); 11] = [
            ("value=v", Some("v")),
            ("value=", Some("")),
            ("value", Some("")),
            ("value==a=b=", Some("=a=b=")),
            ("other=1&value=2&value=3", Some("2")),
            ("%76alue=x", Some("x")),
            ("value=a%26b&c", Some("a%26b")),
            ("", None),
            ("values=1&Value=2&valu", None),
            ("&&value=1", Some("1")),
            ("%zz=1&value=2", Some("2")),
        ];
        for (query, expected) in cases {
            assert_eq!(
                value_parameter(query.as_bytes()),
                expected.map(str::as_bytes),
                "{query}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(bytes: Vec<u8>) {
            let encoded = percent_encoding::percent_encode(&bytes, percent_encoding::NON_ALPHANUMERIC);
            let encoded = encoded.to_string();
            for plus in [Plus::IsSpace, Plus::IsPlus] {
                prop_assert_eq!(percent_decode(encoded.as_bytes(), plus), Ok(bytes.clone()));
            }
        }

        #[test]
        fn anything_is_decoded_or_refused(bytes: Vec<u8>) {
            if let Ok(decoded) = percent_decode(&bytes, Plus::IsSpace) {
                prop_assert!(decoded.len() <= bytes.len());
            }
        }
    }
}
