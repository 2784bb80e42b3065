//! What nodes ask of each other's replicas, whoever leads: snapshots, and how far everything is stored.
//!
//! | route | body | answer |
//! |---|---|---|
//! | `POST /internal/v1/slots/{slot}/snapshot` | log id (8 bytes, big-endian), least offset (8), key behind which to begin | blocks, see `store/snapshot.rs` |
//! | `POST /internal/v1/status` | – | the node's status, JSON |

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use kvcluster_crds::{LogId, NodeStatus, Offset, SlotId};
use tokio::time::Instant;

use crate::api::Shared;
use crate::api::problem::{ErrorCode, Problem};
use crate::effect::KEY_BYTES_MAX;
use crate::peer::Peers;
use crate::store::ExportError;

pub(super) const SNAPSHOT_ROUTE: &str = "/internal/v1/slots/{slot}/snapshot";
pub(super) const STATUS_ROUTE: &str = "/internal/v1/status";

/// Longest status of a node, bytes: some hundred for each slot.
const STATUS_BYTES_MAX: usize = 4 * 1_048_576;
/// Longest refusal, bytes.
const REFUSAL_BYTES_MAX: usize = 65_536;

/// Which snapshot is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The slot.
    pub slot: SlotId,
    /// The log that it is meant for.
    pub log_id: LogId,
    /// It must stand here or later.
    pub least: Offset,
    /// It begins behind this key; empty: with the first.
    pub after: Bytes,
}

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route(SNAPSHOT_ROUTE, post(snapshot))
        .route(STATUS_ROUTE, post(status))
}

/// Asks a node for a snapshot. Errors are in words.
pub async fn ask_snapshot(
    peers: &Peers,
    address: &str,
    wanted: &Wanted,
    deadline: Instant,
) -> Result<BoxStream<'static, Result<Bytes, String>>, String> {
    let path = SNAPSHOT_ROUTE.replace("{slot}", &wanted.slot.to_string());
    let response = peers
        .send(
            address,
            Method::POST,
            &path,
            None,
            wanted.encode(),
            deadline,
        )
        .await
        .map_err(|error| error.to_string())?;
    if response.status() != StatusCode::OK {
        let body = Peers::body(address, response, REFUSAL_BYTES_MAX, deadline).await;
        let body = body.map_err(|error| error.to_string())?;
        let problem = Problem::from_body(&body).map(|problem| problem.detail);
        return Err(problem.unwrap_or_else(|| format!("{address} did not answer")));
    }
    let pieces = response.into_body().into_data_stream();
    let pieces = pieces.map(|piece| piece.map_err(|error| error.to_string()));
    Ok(pieces.boxed())
}

/// Asks a node for its status. Errors are in words.
pub async fn ask_status(
    peers: &Peers,
    address: &str,
    deadline: Instant,
) -> Result<NodeStatus, String> {
    let response = peers
        .send(
            address,
            Method::POST,
            STATUS_ROUTE,
            None,
            Bytes::new(),
            deadline,
        )
        .await
        .map_err(|error| error.to_string())?;
    let body = Peers::body(address, response, STATUS_BYTES_MAX, deadline)
        .await
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&body).map_err(|error| format!("{address}: {error}"))
}

impl Wanted {
    fn encode(&self) -> Bytes {
        let mut body = BytesMut::with_capacity(16 + self.after.len());
        body.put_u64(self.log_id.0);
        body.put_i64(self.least.0);
        body.extend_from_slice(&self.after);
        body.freeze()
    }

    fn decode(slot: SlotId, mut body: Bytes) -> Option<Self> {
        let log_id = LogId(body.try_get_u64().ok()?);
        let least = Offset(body.try_get_i64().ok()?);
        (body.len() <= KEY_BYTES_MAX).then_some(Self {
            slot,
            log_id,
            least,
            after: body,
        })
    }
}

async fn snapshot(
    State(shared): State<Arc<Shared>>,
    Path(slot): Path<u32>,
    body: Bytes,
) -> Result<Response, Problem> {
    let wanted = Wanted::decode(SlotId(slot), body)
        .filter(|wanted| wanted.slot.0 < shared.slots.count())
        .ok_or_else(|| Problem::new(ErrorCode::BadRequest, "the body asks for no snapshot"))?;
    let own = shared.slots.log_id();
    if wanted.log_id != own {
        let detail = format!("this node follows log {own}, not {}", wanted.log_id);
        return Err(Problem::new(ErrorCode::NoSnapshot, detail));
    }
    let pieces = shared
        .snapshots
        .export(wanted.slot, wanted.after, wanted.least)
        .await?;
    Ok(Body::from_stream(pieces).into_response())
}

async fn status(State(shared): State<Arc<Shared>>) -> Json<NodeStatus> {
    Json(shared.slots.status())
}

impl From<ExportError> for Problem {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::Store(error) => error.into(),
            ExportError::NotHere { .. }
            | ExportError::NotWhole { .. }
            | ExportError::TooOld { .. } => Self::new(ErrorCode::NoSnapshot, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_comes_back_as_it_went() {
        let wanted = Wanted {
            slot: SlotId(7),
            log_id: LogId(u64::MAX),
            least: Offset(9),
            after: Bytes::from_static(b"\0key"),
        };
        assert_eq!(
            Wanted::decode(wanted.slot, wanted.encode()),
            Some(wanted.clone())
        );
        assert_eq!(Wanted::decode(SlotId(7), wanted.encode().slice(..15)), None);
        let long = Wanted {
            after: Bytes::from(vec![0; KEY_BYTES_MAX + 1]),
            ..wanted
        };
        assert_eq!(Wanted::decode(SlotId(7), long.encode()), None);
    }
}
