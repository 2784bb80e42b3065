//! Percent-encoding of keys and values for the classic routes.

use std::fmt::Write as _;

/// Encodes everything but RFC 3986's unreserved characters.
pub fn encode(text: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len() + text.len() / 2);
    for &byte in text {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a String takes all that is written");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_encoded() {
        assert_eq!(
            encode(b"a b/c?d&e=f#g%\xff"),
            "a%20b%2Fc%3Fd%26e%3Df%23g%25%FF"
        );
        assert_eq!(encode(b"AZaz09-._~"), "AZaz09-._~");
    }
}
