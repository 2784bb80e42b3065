//! Requests between nodes, on the REST port: writes, reads and scans of one slot at its leader. They never forward again: a
//! node that does not lead answers `not_leader`, effect none.
//!
//! A write's idempotency key goes along in the header it came in.
//!
//! | route | body | answer |
//! |---|---|---|
//! | `POST /internal/v1/slots/{slot}/write` | kind (1 put, 2 delete), length of the key (4 bytes, big-endian), key, value | offset (8 bytes) |
//! | `POST /internal/v1/slots/{slot}/read` | key | empty: absent; else version (8 bytes), value |
//! | `POST /internal/v1/slots/{slot}/scan` | – | rows, see `api/frames.rs` |

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Limited};
use kvcluster_crds::{Offset, SlotId};
use tokio::time::Instant;

use crate::api::Shared;
use crate::api::dispatch::{Failure, REQUEST_SECONDS, too_late};
use crate::api::frames;
use crate::api::idempotency::IdempotencyKey;
use crate::api::problem::{ErrorCode, Problem};
use crate::effect::{Effect, KEY_BYTES_MAX, VALUE_BYTES_MAX, Versioned};
use crate::peer::TIME_LEFT;
use crate::store::{Row, StoreError};

const PUT: u8 = 1;
const DELETE: u8 = 2;
/// Bytes before the key of a write.
const WRITE_HEADER_BYTES: usize = 5;
/// Longest body.
const BODY_BYTES_MAX: usize = WRITE_HEADER_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX;
/// Longest time of a request between nodes, seconds; the opening of a scan may wait longest.
const TIME_MAX_SECONDS: u64 = 30;
/// Rows of a piece of the stream.
const ROWS_PER_PIECE: usize = 256;

pub(super) const WRITE_ROUTE: &str = "/internal/v1/slots/{slot}/write";
pub(super) const READ_ROUTE: &str = "/internal/v1/slots/{slot}/read";
pub(super) const SCAN_ROUTE: &str = "/internal/v1/slots/{slot}/scan";

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route(WRITE_ROUTE, post(write))
        .route(READ_ROUTE, post(read))
        .route(SCAN_ROUTE, post(scan))
}

pub(super) fn write_path(slot: SlotId) -> String {
    WRITE_ROUTE.replace("{slot}", &slot.to_string())
}

pub(super) fn read_path(slot: SlotId) -> String {
    READ_ROUTE.replace("{slot}", &slot.to_string())
}

pub(super) fn scan_path(slot: SlotId) -> String {
    SCAN_ROUTE.replace("{slot}", &slot.to_string())
}

/// The body of a write.
pub(super) fn encode_effect(effect: &Effect) -> Bytes {
    let mut body = BytesMut::with_capacity(WRITE_HEADER_BYTES + effect.bytes());
    body.put_u8(match effect {
        Effect::Put { .. } => PUT,
        Effect::Delete { .. } => DELETE,
    });
    let key = effect.key();
    body.put_u32(u32::try_from(key.len()).expect("a key has a limit"));
    body.extend_from_slice(key);
    if let Effect::Put { value, .. } = effect {
        body.extend_from_slice(value);
    }
    body.freeze()
}

fn decode_effect(mut body: Bytes) -> Option<Effect> {
    if body.len() < WRITE_HEADER_BYTES {
        return None;
    }
    let kind = body.get_u8();
    let key_length = body.get_u32() as usize;
    if key_length == 0 || key_length > KEY_BYTES_MAX || key_length > body.len() {
        return None;
    }
    let key = body.split_to(key_length);
    match kind {
        PUT if body.len() <= VALUE_BYTES_MAX => Some(Effect::Put { key, value: body }),
        DELETE if body.is_empty() => Some(Effect::Delete { key }),
        _ => None,
    }
}

/// The answer of a write.
pub(super) fn decode_offset(body: &[u8]) -> Option<Offset> {
    body.try_into().ok().map(i64::from_be_bytes).map(Offset)
}

/// The answer of a read.
#[expect(
    clippy::option_option,
    reason = "malformed, or whether the key is there"
)]
pub(super) fn decode_found(body: &Bytes) -> Option<Option<Versioned>> {
    if body.is_empty() {
        return Some(None);
    }
    let version = body.first_chunk::<8>()?;
    let version = Offset(i64::from_be_bytes(*version));
    Some(Some(Versioned {
        value: body.slice(8..),
        version,
    }))
}

async fn write(
    State(shared): State<Arc<Shared>>,
    Path(slot): Path<u32>,
    request: Request,
) -> Result<Response, Problem> {
    let deadline = deadline(request.headers());
    let key = IdempotencyKey::of(request.headers())?;
    let body = body(request, deadline).await?;
    let effect = decode_effect(body)
        .ok_or_else(|| Problem::new(ErrorCode::BadRequest, "the body is no put or delete"))?;
    let slot = SlotId(slot);
    check_slot(&shared, slot, effect.key())?;
    let offset = shared
        .write_here(slot, effect, key.as_ref(), deadline)
        .await
        .map_err(Failure::into_problem)?;
    Ok(Bytes::copy_from_slice(&offset.0.to_be_bytes()).into_response())
}

async fn read(
    State(shared): State<Arc<Shared>>,
    Path(slot): Path<u32>,
    request: Request,
) -> Result<Response, Problem> {
    let deadline = deadline(request.headers());
    let key = body(request, deadline).await?;
    let slot = SlotId(slot);
    check_slot(&shared, slot, &key)?;
    let found = shared
        .read_here(slot, &key, deadline)
        .await
        .map_err(Failure::into_problem)?;
    let mut answer = BytesMut::new();
    if let Some(found) = found {
        answer.put_i64(found.version.0);
        answer.extend_from_slice(&found.value);
    }
    Ok(answer.freeze().into_response())
}

async fn scan(
    State(shared): State<Arc<Shared>>,
    Path(slot): Path<u32>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let slot = SlotId(slot);
    if slot.0 >= shared.slots.count() {
        return Err(Problem::new(
            ErrorCode::BadRequest,
            format!("there is no slot {slot}"),
        ));
    }
    let rows = shared
        .scan_here(slot, deadline(&headers))
        .await
        .map_err(Failure::into_problem)?;
    Ok(Body::from_stream(frame_stream(rows)).into_response())
}

/// The rows as pieces of the stream between nodes; an error breaks it off.
fn frame_stream(
    rows: BoxStream<'static, Result<Row, StoreError>>,
) -> impl futures::Stream<Item = Result<Bytes, StoreError>> {
    let pieces = rows
        .ready_chunks(ROWS_PER_PIECE)
        .map(Some)
        .chain(stream::once(async { None }));
    let mut count = 0;
    pieces.map(move |rows| {
        let mut piece = BytesMut::new();
        match rows {
            Some(rows) => {
                for row in rows {
                    frames::encode_row(&mut piece, &row?);
                    count += 1;
                }
            }
            None => frames::encode_end(&mut piece, count),
        }
        Ok(piece.freeze())
    })
}

fn deadline(headers: &HeaderMap) -> Instant {
    let left = headers
        .get(TIME_LEFT)
        .and_then(|text| text.to_str().ok()?.parse::<u64>().ok());
    let left = left.map_or(Duration::from_secs(REQUEST_SECONDS), Duration::from_millis);
    Instant::now() + left.min(Duration::from_secs(TIME_MAX_SECONDS))
}

async fn body(request: Request, deadline: Instant) -> Result<Bytes, Problem> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    let body = tokio::time::timeout_at(deadline, body).await;
    let body = body.map_err(|_| too_late("reading the request"))?;
    let bad = |error: Box<dyn std::error::Error + Send + Sync>| {
        Problem::new(
            ErrorCode::BadRequest,
            format!("failed to read the body: {error}"),
        )
    };
    body.map(http_body_util::Collected::to_bytes).map_err(bad)
}

/// A node with another number of slots, or another rule for keys, must not write here.
fn check_slot(shared: &Shared, slot: SlotId, key: &[u8]) -> Result<(), Problem> {
    let right = !key.is_empty() && key.len() <= KEY_BYTES_MAX && shared.slot(key) == slot;
    let wrong = || {
        Problem::new(
            ErrorCode::BadRequest,
            format!("the key is not in slot {slot}"),
        )
    };
    right.then_some(()).ok_or_else(wrong)
}
