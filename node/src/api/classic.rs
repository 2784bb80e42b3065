//! The classic routes, statuses and bodies to the letter: `PUT`, `GET`, `HEAD`, `DELETE` of `/key/<key>`.
//!
//! The key is the one path segment after `/key/`, percent-decoded (`%2F` is a slash in it); the value is the query's first
//! `value`, in which `+` is a space. Keys and values that are not UTF-8 are refused: the classic routes are text, and
//! `GET /scan` has to give them back in JSON.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;

use crate::api::Shared;
use crate::api::decode::{Plus, percent_decode, value_parameter};
use crate::api::idempotency::IdempotencyKey;
use crate::api::level::{Level, Token};
use crate::api::long_query::LongQuery;
use crate::api::problem::{ErrorCode, Problem};
use crate::effect::{Effect, KEY_BYTES_MAX, VALUE_BYTES_MAX};

pub(super) const ROUTE: &str = "/key/{key}";
pub(super) const EMPTY_ROUTE: &str = "/key/";
const PREFIX: &str = "/key/";
const ALLOW: &str = "GET, HEAD, PUT, DELETE, OPTIONS";
const TEXT: &str = "text/plain; charset=utf-8";

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route(ROUTE, any(key))
        .route(EMPTY_ROUTE, any(key))
}

async fn key(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    // A body is ignored, as it always was.
    let (request, _body) = request.into_parts();
    let answer = match request.method {
        Method::PUT => put(&shared, &request).await,
        Method::GET | Method::HEAD => get(&shared, &request).await,
        Method::DELETE => delete(&shared, &request).await,
        Method::OPTIONS => Ok(allow(ALLOW)),
        ref other => Ok(method_not_allowed(other, ALLOW)),
    };
    answer.unwrap_or_else(IntoResponse::into_response)
}

async fn put(shared: &Shared, request: &Parts) -> Result<Response, Problem> {
    let key = key_of(request)?;
    require_text(&key, "key")?;
    let query = match request.extensions.get::<LongQuery>() {
        Some(LongQuery::Whole(query)) => query.bytes(),
        Some(LongQuery::TooLong) => return Err(Problem::value_too_long()),
        Some(LongQuery::NoRoom) => {
            let detail = "the long requests that are being read fill their memory";
            return Err(Problem::new(ErrorCode::Overloaded, detail));
        }
        None => request.uri.query().unwrap_or_default().as_bytes(),
    };
    let Some(value) = value_parameter(query) else {
        return Ok(text(StatusCode::BAD_REQUEST, "Missing 'value' parameter"));
    };
    let value = percent_decode(value, Plus::IsSpace)
        .map_err(|error| Problem::new(ErrorCode::BadEncoding, format!("value: {error}")))?;
    if value.len() > VALUE_BYTES_MAX {
        return Err(Problem::value_too_long());
    }
    require_text(&value, "value")?;
    let value = value.into();
    let token = write(shared, request, Effect::Put { key, value }).await?;
    Ok(with(token, text(StatusCode::OK, "PUT success")))
}

async fn get(shared: &Shared, request: &Parts) -> Result<Response, Problem> {
    let key = key_of(request)?;
    let (log_id, slot) = (shared.slots.log_id(), shared.slot(&key));
    let level = Level::of(&request.headers, log_id, slot)?;
    let (found, seen) = shared.read_at(&key, level, shared.deadline()).await?;
    let answer = match found {
        Some(found) => text(StatusCode::OK, found.value),
        None => text(StatusCode::NOT_FOUND, "Key not found"),
    };
    Ok(match seen {
        Some(token) => with(token, answer),
        None => answer,
    })
}

async fn delete(shared: &Shared, request: &Parts) -> Result<Response, Problem> {
    let key = key_of(request)?;
    let token = write(shared, request, Effect::Delete { key }).await?;
    Ok(with(token, text(StatusCode::OK, "DELETE success")))
}

/// Writes, and gives the token of the write's record.
async fn write(shared: &Shared, request: &Parts, effect: Effect) -> Result<Token, Problem> {
    let slot = shared.slot(effect.key());
    let key = IdempotencyKey::of(&request.headers)?;
    let offset = shared
        .write(effect, key.as_ref(), shared.deadline())
        .await?;
    Ok(shared.token(slot, offset))
}

fn with(token: Token, mut answer: Response) -> Response {
    answer.headers_mut().extend([token.header()]);
    answer
}

/// The answer to `OPTIONS`.
pub(super) fn allow(methods: &'static str) -> Response {
    (StatusCode::NO_CONTENT, [(header::ALLOW, methods)]).into_response()
}

pub(super) fn method_not_allowed(method: &Method, allowed: &'static str) -> Response {
    let detail = format!("{method} is not among {allowed}");
    let mut response = Problem::new(ErrorCode::MethodNotAllowed, detail).into_response();
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, TEXT),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, body.into()).into_response()
}

fn key_of(request: &Parts) -> Result<Bytes, Problem> {
    let encoded = request.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let key = percent_decode(encoded.as_bytes(), Plus::IsPlus)
        .map_err(|error| Problem::new(ErrorCode::BadEncoding, format!("key: {error}")))?;
    if key.is_empty() {
        return Err(Problem::new(
            ErrorCode::EmptyKey,
            "a key has at least one byte: /key/<key>",
        ));
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(Problem::key_too_long(key.len()));
    }
    Ok(key.into())
}

fn require_text(bytes: &[u8], what: &str) -> Result<(), Problem> {
    std::str::from_utf8(bytes).map(|_| ()).map_err(|error| {
        let at = error.valid_up_to();
        let detail = format!(
            "the {what} is not UTF-8 at byte {at}; bytes that are not text go in as text, for example in base64"
        );
        Problem::new(ErrorCode::NotText, detail)
    })
}
