//! How many requests a node serves at once: above the limit it answers 429 at once instead of queueing. Requests of other
//! nodes have a limit of their own, so that clients cannot keep the leaders' work out.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::problem::{ErrorCode, Problem};

/// Requests of clients at once: four times the largest number of connections that the store was measured with.
const CLIENT_REQUESTS_MAX: usize = 1_024;
/// Requests of other nodes at once: each of a few nodes may forward all that its clients send.
const PEER_REQUESTS_MAX: usize = 4_096;
/// Bytes of request bodies of other nodes at once: 64 of the largest writes, most are far smaller.
const PEER_BYTES_MAX: usize = 64 * 1_048_576;

/// The limits.
pub(super) struct Admission {
    clients: Arc<Semaphore>,
    peers: Arc<Semaphore>,
    peer_bytes: Arc<Semaphore>,
    in_flight: Gauge,
}

/// Leave to serve one request, until it is dropped.
pub(super) struct Admitted {
    _requests: OwnedSemaphorePermit,
    _bytes: Option<OwnedSemaphorePermit>,
    in_flight: Gauge,
}

impl Admission {
    pub(super) fn new(in_flight: Gauge) -> Self {
        Self {
            clients: Arc::new(Semaphore::new(CLIENT_REQUESTS_MAX)),
            peers: Arc::new(Semaphore::new(PEER_REQUESTS_MAX)),
            peer_bytes: Arc::new(Semaphore::new(PEER_BYTES_MAX)),
            in_flight,
        }
    }

    /// For a client's request; its body is not read.
    pub(super) fn client(&self) -> Result<Admitted, Problem> {
        self.admit(&self.clients, None, CLIENT_REQUESTS_MAX)
    }

    /// For another node's request with a body of so many bytes.
    pub(super) fn peer(&self, bytes: u64) -> Result<Admitted, Problem> {
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX);
        let held = Arc::clone(&self.peer_bytes).try_acquire_many_owned(wanted);
        let held = held.map_err(|_| {
            let detail = format!("{PEER_BYTES_MAX} bytes of forwarded writes are being served");
            Problem::new(ErrorCode::Overloaded, detail)
        })?;
        self.admit(&self.peers, Some(held), PEER_REQUESTS_MAX)
    }

    fn admit(
        &self,
        limit: &Arc<Semaphore>,
        bytes: Option<OwnedSemaphorePermit>,
        most: usize,
    ) -> Result<Admitted, Problem> {
        let requests = Arc::clone(limit).try_acquire_owned().map_err(|_| {
            let detail = format!("{most} requests are being served, which is the limit");
            Problem::new(ErrorCode::Overloaded, detail)
        })?;
        self.in_flight.inc();
        let in_flight = self.in_flight.clone();
        Ok(Admitted {
            _requests: requests,
            _bytes: bytes,
            in_flight,
        })
    }
}

impl Admitted {
    /// Holds the leave until the whole answer is sent.
    pub(super) fn hold(self, response: Response) -> Response {
        response.map(|body| {
            Body::new(Held {
                body,
                _admitted: self,
            })
        })
    }
}

/// A body that holds the leave.
struct Held {
    body: Body,
    _admitted: Admitted,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.in_flight.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_refuses_and_gives_back() {
        let gauge = Gauge::default();
        let admission = Admission::new(gauge.clone());
        let mut held: Vec<_> = (0..CLIENT_REQUESTS_MAX)
            .map(|_| admission.client().expect("below the limit"))
            .collect();
        let code = |answer: Result<Admitted, Problem>| answer.map(|_| ()).map_err(|p| p.code);
        assert_eq!(code(admission.client()), Err(ErrorCode::Overloaded));
        assert_eq!(
            code(admission.peer(10)),
            Ok(()),
            "nodes have a limit of their own"
        );
        held.pop();
        assert_eq!(code(admission.client()), Ok(()));
        assert_eq!(gauge.get(), i64::try_from(held.len()).expect("small"));
    }

    #[test]
    fn bytes_of_nodes_are_limited() {
        let admission = Admission::new(Gauge::default());
        let first = admission.peer(PEER_BYTES_MAX as u64 - 5).expect("fits");
        let code = |answer: Result<Admitted, Problem>| answer.map(|_| ()).map_err(|p| p.code);
        assert_eq!(code(admission.peer(6)), Err(ErrorCode::Overloaded));
        assert_eq!(code(admission.peer(5)), Ok(()));
        drop(first);
        assert_eq!(code(admission.peer(u64::MAX)), Err(ErrorCode::Overloaded));
        assert_eq!(code(admission.peer(6)), Ok(()));
    }
}
