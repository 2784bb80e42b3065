//! `GET /scan`: all pairs of the whole cluster as one flat JSON object, streamed.
//!
//! Each slot is one linearizable cut, taken by its leader; there is no cut across slots. Slots are read a few at a time and
//! their rows come in whatever order they arrive, so memory stays constant and no slot waits for another. A stream that
//! cannot be finished is broken off, so that a client never takes a part for the whole.
//!
//! JSON holds text alone. The classic routes refuse keys and values that are not UTF-8, so everything that they wrote can be
//! scanned exactly. A row that is not text nevertheless (written by other means) breaks the stream off and is named in the
//! log, rather than being changed.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use kvcluster_crds::SlotId;
use tokio::time::Instant;

use crate::api::Shared;
use crate::api::classic::{allow, method_not_allowed};
use crate::api::dispatch::{Failure, too_late};
use crate::api::frames::Decoder;
use crate::api::internal;
use crate::api::problem::{ErrorCode, Problem};
use crate::peer::Peers;
use crate::service::Place;
use crate::store::Row;

/// Slots of one scan that are read at a time: enough to keep the network busy, few enough for the leaders' connections.
const SLOTS_AT_ONCE: usize = 4;
/// Longest wait for the begin of one slot's rows, seconds: behind other scans, or through an election.
const BEGIN_SECONDS: u64 = 30;
/// Longest silence of a slot's leader in the middle of its rows, seconds.
const SILENCE_SECONDS: u64 = 30;
/// Rows that are written into one piece of the body.
const ROWS_PER_PIECE: usize = 256;
/// Longest refusal of another node, bytes.
const REFUSAL_BYTES_MAX: usize = 65_536;

pub(super) const ROUTE: &str = "/scan";
const ALLOW: &str = "GET, HEAD, OPTIONS";

type Rows = BoxStream<'static, Result<Row, Problem>>;

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new().route(ROUTE, any(scan))
}

async fn scan(State(shared): State<Arc<Shared>>, method: Method) -> Result<Response, Problem> {
    match method {
        Method::GET => {}
        Method::HEAD => return Ok(json(Body::empty())),
        Method::OPTIONS => return Ok(allow(ALLOW)),
        _ => return Ok(method_not_allowed(&method, ALLOW)),
    }
    let permit = Arc::clone(&shared.scans).try_acquire_owned();
    let permit = permit.map_err(|_| {
        Problem::new(
            ErrorCode::Overloaded,
            "this node serves as many scans at once as it may",
        )
    })?;
    wait_for_leaders(&shared, shared.deadline()).await?;
    let mut pieces = rows(&shared).ready_chunks(ROWS_PER_PIECE).boxed();
    // What goes wrong before the first row still gets a proper answer.
    let first = pieces
        .next()
        .await
        .map(|piece| piece.into_iter().collect::<Result<Vec<_>, _>>());
    let first = first
        .transpose()?
        .map(|rows| rows.into_iter().map(Ok).collect());
    let body = write_object(stream::iter(first).chain(pieces)).map(move |piece| {
        let _held = &permit;
        piece.inspect_err(|problem| tracing::error!(detail = problem.detail, "a scan broke off"))
    });
    Ok(json(Body::from_stream(
        body.map_err(|problem| std::io::Error::other(problem.detail)),
    )))
}

fn json(body: Body) -> Response {
    (
        StatusCode::OK,
        [(header::CONTENT_TYPE, "application/json")],
        body,
    )
        .into_response()
}

/// Before anything is sent, every slot must have a leader: later a slot without one can only break the stream off.
async fn wait_for_leaders(shared: &Shared, deadline: Instant) -> Result<(), Problem> {
    for slot in (0..shared.slots.count()).map(SlotId) {
        while shared.slots.place(slot) == Place::Nobody {
            let problem = Problem::no_leader(slot);
            shared
                .look_again(slot, Place::Nobody, problem, deadline)
                .await?;
        }
    }
    Ok(())
}

/// The rows of all slots.
fn rows(shared: &Arc<Shared>) -> impl Stream<Item = Result<Row, Problem>> + Send + use<> {
    let shared = Arc::clone(shared);
    stream::iter((0..shared.slots.count()).map(SlotId))
        .map(move |slot| {
            let shared = Arc::clone(&shared);
            stream::once(async move { shared.open_scan(slot).await })
                .try_flatten()
                .boxed()
        })
        .flatten_unordered(SLOTS_AT_ONCE)
}

impl Shared {
    /// The rows of one slot, wherever its leader is.
    async fn open_scan(&self, slot: SlotId) -> Result<Rows, Problem> {
        let deadline = Instant::now() + Duration::from_secs(BEGIN_SECONDS);
        loop {
            let place = self.slots.place(slot);
            let attempt = match &place {
                Place::Here => self
                    .scan_here(slot, deadline)
                    .await
                    .map(|rows| rows.map_err(Problem::from).boxed()),
                Place::Node { address, .. } => self.scan_there(address, slot, deadline).await,
                Place::Nobody => Err(Failure::Nothing(Problem::no_leader(slot))),
            };
            match attempt {
                Ok(rows) => return Ok(rows),
                Err(Failure::Final(problem)) => return Err(problem),
                Err(Failure::Nothing(problem)) => {
                    self.look_again(slot, place, problem, deadline).await?;
                }
            }
        }
    }

    /// The rows of a slot that this node leads: the cut is taken, and this node led when it was.
    pub(super) async fn scan_here(
        &self,
        slot: SlotId,
        deadline: Instant,
    ) -> Result<BoxStream<'static, Result<Row, crate::store::StoreError>>, Failure> {
        loop {
            let permit = self.slots.read(slot, deadline).await;
            let permit = permit.map_err(|error| Failure::from(Problem::from(error)))?;
            let rows = tokio::time::timeout_at(deadline, self.store.scan(slot)).await;
            let rows = rows
                .map_err(|_| Failure::Final(too_late("beginning a scan")))?
                .map_err(|error| Failure::Final(error.into()))?;
            if permit.confirm(self.clock.now_ns()) {
                return Ok(rows);
            }
            if Instant::now() >= deadline {
                return Err(Failure::Nothing(Problem::no_leader(slot)));
            }
        }
    }

    async fn scan_there(
        &self,
        address: &str,
        slot: SlotId,
        deadline: Instant,
    ) -> Result<Rows, Failure> {
        let nothing = |why: String| Failure::Nothing(Problem::new(ErrorCode::NoLeader, why));
        let path = internal::scan_path(slot);
        let response = self
            .peers
            .send(address, Method::POST, &path, None, Bytes::new(), deadline)
            .await;
        let response = response.map_err(|error| nothing(error.to_string()))?;
        if response.status() != StatusCode::OK {
            let body = Peers::body(address, response, REFUSAL_BYTES_MAX, deadline).await;
            let body = body.map_err(|error| nothing(error.to_string()))?;
            return Err(Problem::from_body(&body).map_or_else(
                || nothing(format!("{address} did not answer")),
                Failure::from,
            ));
        }
        Ok(decode_rows(
            response.into_body().into_data_stream(),
            address.to_owned(),
        ))
    }
}

/// Rows out of the pieces that another node sends; an error when they break off.
fn decode_rows<E: std::fmt::Display>(
    pieces: impl Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    address: String,
) -> Rows {
    let start = (pieces, Decoder::default());
    let rows = stream::try_unfold(start, move |(mut pieces, mut decoder)| {
        let broken = {
            let address = address.clone();
            move |why: &dyn std::fmt::Display| {
                Problem::new(ErrorCode::NoLeader, format!("rows from {address}: {why}"))
            }
        };
        async move {
            loop {
                if let Some(row) = decoder.next_row().map_err(|error| broken(&error))? {
                    return Ok(Some((row, (pieces, decoder))));
                }
                let silence = Duration::from_secs(SILENCE_SECONDS);
                let piece = tokio::time::timeout(silence, pieces.next()).await;
                match piece.map_err(|error| broken(&error))? {
                    Some(Ok(piece)) => decoder.push(&piece),
                    Some(Err(error)) => return Err(broken(&error)),
                    None => {
                        return decoder
                            .finish()
                            .map(|()| None)
                            .map_err(|error| broken(&error));
                    }
                }
            }
        }
    });
    rows.boxed()
}

/// One JSON object out of all rows.
fn write_object(
    pieces: impl Stream<Item = Vec<Result<Row, Problem>>>,
) -> impl Stream<Item = Result<Bytes, Problem>> {
    let mut begun = false;
    let pieces = pieces.map(move |rows| {
        let mut text = Vec::new();
        for row in rows {
            text.push(if begun { b',' } else { b'{' });
            begun = true;
            write_pair(&mut text, &row?)?;
        }
        Ok(text)
    });
    // Whether any row came is known only at the end, to a closure of its own.
    let mut any = false;
    pieces
        .map(Some)
        .chain(stream::once(async { None }))
        .map(move |piece| match piece {
            Some(Ok(text)) => {
                any |= !text.is_empty();
                Ok(Bytes::from(text))
            }
            Some(Err(problem)) => Err(problem),
            None => Ok(Bytes::from_static(if any { b"}" } else { b"{}" })),
        })
}

fn write_pair(out: &mut Vec<u8>, (key, versioned): &Row) -> Result<(), Problem> {
    write_string(out, str_of(key, key, "name")?);
    out.push(b':');
    write_string(out, str_of(&versioned.value, key, "value")?);
    Ok(())
}

fn str_of<'a>(bytes: &'a Bytes, key: &Bytes, what: &str) -> Result<&'a str, Problem> {
    std::str::from_utf8(bytes).map_err(|_| {
        let detail = format!("the {what} of key \"{}\" is not UTF-8", key.escape_ascii());
        Problem::new(ErrorCode::NotText, detail)
    })
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("text goes into memory");
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::BytesMut;
    use kvcluster_crds::Offset;

    use super::*;
    use crate::api::frames;
    use crate::effect::Versioned;

    fn row(key: &'static [u8], value: &'static [u8]) -> Row {
        let value = Bytes::from_static(value);
        (
            Bytes::from_static(key),
            Versioned {
                value,
                version: Offset(1),
            },
        )
    }

    async fn object(pieces: Vec<Vec<Result<Row, Problem>>>) -> Result<String, Problem> {
        let text: Vec<Bytes> = write_object(stream::iter(pieces)).try_collect().await?;
        Ok(String::from_utf8(text.concat()).expect("JSON is text"))
    }

    #[tokio::test]
    async fn writes_one_object() {
        assert_eq!(object(vec![]).await.as_deref(), Ok("{}"));
        let pieces = vec![
            vec![Ok(row(b"a", b"1")), Ok(row(b"\"\n", b""))],
            vec![Ok(row(b"b", "é\0".as_bytes()))],
        ];
        assert_eq!(
            object(pieces).await.as_deref(),
            Ok(r#"{"a":"1","\"\n":"","b":"é\u0000"}"#)
        );
    }

    #[tokio::test]
    async fn a_row_that_is_no_text_breaks_off() {
        for bad in [row(b"k", b"\xff"), row(b"\xff", b"v")] {
            let problem = object(vec![vec![Ok(row(b"a", b"1"))], vec![Ok(bad)]]).await;
            assert_eq!(
                problem.map_err(|problem| problem.code),
                Err(ErrorCode::NotText)
            );
        }
    }

    #[tokio::test]
    async fn rows_of_a_peer_that_break_off_are_an_error() {
        let mut whole = BytesMut::new();
        frames::encode_row(&mut whole, &row(b"a", b"1"));
        let without_end = whole.len();
        frames::encode_end(&mut whole, 1);
        let decode = async |bytes: &[u8]| {
            let pieces: Vec<Result<Bytes, Infallible>> = bytes
                .chunks(3)
                .map(|piece| Ok(Bytes::copy_from_slice(piece)))
                .collect();
            let rows = decode_rows(stream::iter(pieces), "peer".to_owned());
            rows.try_collect::<Vec<Row>>()
                .await
                .map_err(|problem| problem.code)
        };
        assert_eq!(decode(&whole).await, Ok(vec![row(b"a", b"1")]));
        assert_eq!(
            decode(&whole[..without_end]).await,
            Err(ErrorCode::NoLeader)
        );
        assert_eq!(decode(&[]).await, Err(ErrorCode::NoLeader));
    }
}
