//! Errors of the REST side: `application/problem+json` (RFC 9457) with `code`, `retryable` and whether it took `effect`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kvcluster_crds::SlotId;
use serde::{Deserialize, Serialize};

use crate::effect::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::service::SlotError;
use crate::store::StoreError;

/// `Retry-After` of 429 and 503, seconds: an election takes about one.
const RETRY_AFTER_SECONDS: &str = "1";

/// What went wrong; part of the interface, as `code` in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The key is empty.
    EmptyKey,
    /// A `%` without two hexadecimal digits.
    BadEncoding,
    /// A key or value that is not UTF-8, where only text can be kept.
    NotText,
    /// A header that makes no sense, or a request between nodes.
    BadRequest,
    /// Longer than [`KEY_BYTES_MAX`].
    KeyTooLong,
    /// Longer than [`VALUE_BYTES_MAX`].
    ValueTooLong,
    /// The idempotency key was used for another request.
    IdempotencyKeyReused,
    /// No such path.
    UnknownPath,
    /// The path knows other methods.
    MethodNotAllowed,
    /// A limit is reached.
    Overloaded,
    /// This node does not lead the slot; only between nodes.
    NotLeader,
    /// No leader answered in time.
    NoLeader,
    /// The log does not answer.
    LogUnavailable,
    /// PostgreSQL does not answer, and the answer is not in memory.
    StoreUnavailable,
    /// There is no snapshot here that helps; only between nodes.
    NoSnapshot,
    /// The slot stands still until somebody acts.
    SlotFrozen,
    /// The time for the request is over.
    DeadlineExceeded,
    /// The write was sent and its fate is not known.
    OutcomeUnknown,
}

/// Whether something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectOnData {
    /// Certainly not.
    None,
    /// It may have, or may still.
    Unknown,
}

/// What a code says to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// The HTTP status.
    pub status: StatusCode,
    /// Whether the same request may go well later.
    pub retryable: bool,
    /// Whether it took effect.
    pub effect: EffectOnData,
    /// A few words, the same for every occurrence.
    pub title: &'static str,
}

impl ErrorCode {
    /// What the code says. Every code stands in each of the matches; there is no default.
    pub fn meaning(self) -> Meaning {
        let retryable = match self {
            Self::Overloaded
            | Self::NotLeader
            | Self::NoLeader
            | Self::LogUnavailable
            | Self::StoreUnavailable
            | Self::NoSnapshot
            | Self::DeadlineExceeded
            | Self::OutcomeUnknown => true,
            Self::EmptyKey
            | Self::BadEncoding
            | Self::NotText
            | Self::BadRequest
            | Self::KeyTooLong
            | Self::ValueTooLong
            | Self::IdempotencyKeyReused
            | Self::UnknownPath
            | Self::MethodNotAllowed
            | Self::SlotFrozen => false,
        };
        let effect = if self == Self::OutcomeUnknown {
            EffectOnData::Unknown
        } else {
            EffectOnData::None
        };
        let (status, title) = (self.status(), self.title());
        Meaning {
            status,
            retryable,
            effect,
            title,
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::EmptyKey | Self::BadEncoding | Self::NotText | Self::BadRequest => {
                StatusCode::BAD_REQUEST
            }
            Self::KeyTooLong | Self::ValueTooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Self::NotLeader
            | Self::NoLeader
            | Self::LogUnavailable
            | Self::StoreUnavailable
            | Self::NoSnapshot
            | Self::SlotFrozen
            | Self::DeadlineExceeded
            | Self::OutcomeUnknown => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::EmptyKey => "The key is empty",
            Self::BadEncoding => "Percent-encoding is broken",
            Self::NotText => "Not UTF-8",
            Self::BadRequest => "Malformed request",
            Self::KeyTooLong => "The key is too long",
            Self::ValueTooLong => "The value is too long",
            Self::IdempotencyKeyReused => "The idempotency key was used for another request",
            Self::UnknownPath => "No such path",
            Self::MethodNotAllowed => "Method not allowed",
            Self::Overloaded => "A limit is reached",
            Self::NotLeader => "Another node leads the slot",
            Self::NoLeader => "The slot has no leader",
            Self::LogUnavailable => "The log does not answer",
            Self::StoreUnavailable => "PostgreSQL does not answer",
            Self::NoSnapshot => "There is no snapshot here",
            Self::SlotFrozen => "The slot is frozen",
            Self::DeadlineExceeded => "Not done in time",
            Self::OutcomeUnknown => "The outcome of the write is not known",
        }
    }

    fn name(self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => name,
            _ => unreachable!("a unit variant serialises as its name"),
        }
    }
}

/// One occurrence of an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What went wrong.
    pub code: ErrorCode,
    /// About this occurrence, for people.
    pub detail: String,
}

/// The body.
#[derive(Debug, Serialize, Deserialize)]
struct Body {
    r#type: String,
    title: String,
    status: u16,
    detail: String,
    code: String,
    retryable: bool,
    effect: EffectOnData,
}

impl Problem {
    /// Of `code`, with a detail.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
        }
    }

    /// The key is over its limit.
    pub fn key_too_long(bytes: usize) -> Self {
        let detail = format!("the key has {bytes} bytes; at most {KEY_BYTES_MAX} are allowed");
        Self::new(ErrorCode::KeyTooLong, detail)
    }

    /// The value is over its limit; the length is not always known.
    pub fn value_too_long() -> Self {
        let detail = format!("the value may have at most {VALUE_BYTES_MAX} bytes");
        Self::new(ErrorCode::ValueTooLong, detail)
    }

    /// Nobody serves the slot.
    pub fn no_leader(slot: SlotId) -> Self {
        let detail = format!("no leader of slot {slot} answered in time");
        Self::new(ErrorCode::NoLeader, detail)
    }

    /// The fate of a write is not known.
    pub fn outcome_unknown(slot: SlotId, why: &str) -> Self {
        let detail = format!("the write in slot {slot} may take effect, or not: {why}");
        Self::new(ErrorCode::OutcomeUnknown, detail)
    }

    /// The problem in a body that another node sent; none when it is no such body. A code that this version does not know is
    /// judged by its effect.
    pub fn from_body(body: &[u8]) -> Option<Self> {
        let body: Body = serde_json::from_slice(body).ok()?;
        let code = serde_json::from_value(serde_json::Value::String(body.code));
        let code = code.unwrap_or(match body.effect {
            EffectOnData::None => ErrorCode::NoLeader,
            EffectOnData::Unknown => ErrorCode::OutcomeUnknown,
        });
        Some(Self::new(code, body.detail))
    }
}

impl From<SlotError> for Problem {
    fn from(error: SlotError) -> Self {
        let code = match &error {
            SlotError::NotLeader { .. } | SlotError::Lost { .. } => ErrorCode::NotLeader,
            SlotError::Unknown { .. } => ErrorCode::OutcomeUnknown,
            SlotError::Overloaded { .. } => ErrorCode::Overloaded,
            SlotError::KeyReused { .. } => ErrorCode::IdempotencyKeyReused,
            SlotError::LogUnavailable { .. } => ErrorCode::LogUnavailable,
            SlotError::Frozen { .. } => ErrorCode::SlotFrozen,
        };
        Self::new(code, error.to_string())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        // What PostgreSQL says may name what clients need not know; it is for the log.
        tracing::debug!(%error, "a read failed");
        let detail = match error {
            StoreError::Unavailable(_) => {
                "PostgreSQL does not answer, and the answer is not in memory"
            }
            StoreError::Fenced(_) | StoreError::Schema(_) => "this node is about to restart",
        };
        Self::new(ErrorCode::StoreUnavailable, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let meaning = self.code.meaning();
        let code = self.code.name();
        let body = Body {
            r#type: format!("urn:kvcluster:problem:{code}"),
            title: meaning.title.to_owned(),
            status: meaning.status.as_u16(),
            detail: self.detail,
            code,
            retryable: meaning.retryable,
            effect: meaning.effect,
        };
        let body = serde_json::to_vec(&body).expect("a struct of text and numbers serialises");
        let kind = (header::CONTENT_TYPE, "application/problem+json");
        let mut response = (meaning.status, [kind], body).into_response();
        let busy = [
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::TOO_MANY_REQUESTS,
        ];
        if busy.contains(&meaning.status) {
            let seconds = HeaderValue::from_static(RETRY_AFTER_SECONDS);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [ErrorCode; 17] = [
        ErrorCode::EmptyKey,
        ErrorCode::BadEncoding,
        ErrorCode::NotText,
        ErrorCode::BadRequest,
        ErrorCode::KeyTooLong,
        ErrorCode::ValueTooLong,
        ErrorCode::IdempotencyKeyReused,
        ErrorCode::UnknownPath,
        ErrorCode::MethodNotAllowed,
        ErrorCode::Overloaded,
        ErrorCode::NotLeader,
        ErrorCode::NoLeader,
        ErrorCode::LogUnavailable,
        ErrorCode::StoreUnavailable,
        ErrorCode::SlotFrozen,
        ErrorCode::DeadlineExceeded,
        ErrorCode::OutcomeUnknown,
    ];

    #[tokio::test]
    async fn every_code_goes_there_and_back_with_its_headers() {
        for code in ALL {
            let meaning = code.meaning();
            let response = Problem::new(code, "why").into_response();
            assert_eq!(response.status(), meaning.status);
            assert_eq!(
                response.headers()[header::CONTENT_TYPE],
                "application/problem+json"
            );
            let busy = matches!(meaning.status.as_u16(), 429 | 503);
            assert_eq!(
                response.headers().contains_key(header::RETRY_AFTER),
                busy,
                "{code:?}"
            );
            let body = axum::body::to_bytes(response.into_body(), 10_000)
                .await
                .expect("a body");
            assert_eq!(Problem::from_body(&body), Some(Problem::new(code, "why")));
            let json: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(json["status"], meaning.status.as_u16());
            assert_eq!(json["retryable"], meaning.retryable);
            assert_eq!(json["code"], code.name());
        }
    }

    #[test]
    fn only_an_unknown_outcome_may_have_had_an_effect() {
        for code in ALL {
            let unknown = code.meaning().effect == EffectOnData::Unknown;
            assert_eq!(unknown, code == ErrorCode::OutcomeUnknown, "{code:?}");
        }
    }

    #[test]
    fn an_unknown_code_keeps_its_effect() {
        let body = |effect: &str| {
            format!(
                r#"{{"type":"t","title":"t","status":503,"detail":"d","code":"from_the_future",
                "retryable":true,"effect":"{effect}"}}"#
            )
        };
        let code = |effect| Problem::from_body(body(effect).as_bytes()).map(|problem| problem.code);
        assert_eq!(code("none"), Some(ErrorCode::NoLeader));
        assert_eq!(code("unknown"), Some(ErrorCode::OutcomeUnknown));
        assert_eq!(Problem::from_body(b"<html>"), None);
    }
}
