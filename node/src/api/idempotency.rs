//! The header `Idempotency-Key`: a client's own name for a write, so that the same write can be sent again without taking effect
//! again. It goes along to the leader as it came.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use crate::api::problem::{ErrorCode, Problem};
use crate::effect::{Effect, IDEMPOTENCY_KEY_BYTES_MAX, Idempotency, fingerprint};

const NAME: HeaderName = HeaderName::from_static("idempotency-key");

/// The key of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IdempotencyKey(HeaderValue);

impl IdempotencyKey {
    /// The key of a request, if it has one.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let mut values = headers.get_all(NAME).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        let bytes = value.as_bytes();
        let right = (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&bytes.len())
            && bytes.iter().all(u8::is_ascii_graphic)
            && values.next().is_none();
        if right {
            return Ok(Some(Self(value.clone())));
        }
        let detail = format!(
            "{NAME}: send one key of 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters without spaces, such as a UUID"
        );
        Err(Problem::new(ErrorCode::BadRequest, detail))
    }

    /// The header by which another node gets it.
    pub(super) fn header(&self) -> (HeaderName, HeaderValue) {
        (NAME, self.0.clone())
    }

    /// What a request for `effects` with this key is known again by.
    pub(super) fn with(&self, effects: &[Effect]) -> Idempotency {
        Idempotency {
            key: Bytes::copy_from_slice(self.0.as_bytes()),
            fingerprint: fingerprint(effects),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(values: &[&[u8]]) -> Result<Option<Vec<u8>>, String> {
        let value = |bytes: &&[u8]| (NAME, HeaderValue::from_bytes(bytes).expect("a header"));
        let headers: HeaderMap = values.iter().map(value).collect();
        let key = IdempotencyKey::of(&headers).map_err(|problem| problem.detail)?;
        Ok(key.map(|key| key.0.as_bytes().to_vec()))
    }

    #[test]
    fn a_key_is_visible_ascii_of_a_limited_length() {
        assert_eq!(key(&[]), Ok(None));
        let longest = [b'~'; IDEMPOTENCY_KEY_BYTES_MAX];
        for good in [b"!".as_slice(), b"7f9c-\"x\"", &longest] {
            assert_eq!(key(&[good]), Ok(Some(good.to_vec())));
        }
        let too_long = [b'k'; IDEMPOTENCY_KEY_BYTES_MAX + 1];
        for bad in [b"".as_slice(), b"a b", b"a\tb", b"\xc3\xa9", &too_long] {
            let refused = key(&[bad]).expect_err("refused");
            assert!(
                refused.contains("idempotency-key") && refused.contains("UUID"),
                "{refused}"
            );
        }
        assert!(key(&[b"a", b"a"]).is_err(), "which of them?");
    }
}
