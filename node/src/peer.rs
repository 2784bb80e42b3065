//! The other nodes, over kept-open HTTP/1.1 connections: what this node cannot answer itself goes to the slot's leader.
//!
//! Requests between nodes have routes of their own (`api/internal.rs`), which never forward again. What decides whether a
//! write may be tried again is [`PeerError`]: `NeverSent` means that no connection was made.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;

/// Header of requests between nodes: how long the sender still waits, milliseconds.
pub const TIME_LEFT: HeaderName = HeaderName::from_static("kvcluster-time-left-ms");

/// Longest wait for a connection, milliseconds: a node that is gone must not take the time in which its successor answers.
const CONNECT_MS: u64 = 500;
/// Idle connections are closed after this, seconds: before the other side, which waits 60 s, does it under our next request.
const IDLE_SECONDS: u64 = 20;
/// Idle connections kept per node: as many as a busy node uses at a time.
const IDLE_CONNECTIONS_PER_NODE: usize = 256;
/// Longest time that sent bytes stay unacknowledged, milliseconds: after a cut of the network TCP would try again ever more
/// rarely, and what is asked over a kept-open connection would wait as long again as the cut lasted.
const UNACKNOWLEDGED_MS: u64 = 1_500;
/// Silence after which TCP probes a connection, seconds.
const KEEPALIVE_SECONDS: u64 = 15;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection was made: nothing happened there.
    #[error("failed to connect to {address}: {reason}")]
    NeverSent {
        /// The node.
        address: String,
        /// Why.
        reason: String,
    },
    /// The connection broke, or the time was over, after the request was on its way.
    #[error("no answer from {address}: {reason}")]
    NoAnswer {
        /// The node.
        address: String,
        /// Why.
        reason: String,
    },
}

/// The connections.
#[derive(Clone, Debug)]
pub struct Peers {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Default for Peers {
    fn default() -> Self {
        Self::new()
    }
}

impl Peers {
    /// No connection yet.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(Duration::from_millis(CONNECT_MS)));
        connector.set_nodelay(true);
        connector.set_tcp_user_timeout(Some(Duration::from_millis(UNACKNOWLEDGED_MS)));
        connector.set_keepalive(Some(Duration::from_secs(KEEPALIVE_SECONDS)));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(IDLE_SECONDS))
            .pool_max_idle_per_host(IDLE_CONNECTIONS_PER_NODE)
            .build(connector);
        Self { client }
    }

    /// Sends a request to `address` (`host:port`), with one header more where there is one, and waits for the head of the
    /// answer.
    pub async fn send(
        &self,
        address: &str,
        method: Method,
        path: &str,
        header: Option<(HeaderName, HeaderValue)>,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Response<Incoming>, PeerError> {
        let never_sent = |reason: String| PeerError::NeverSent {
            address: address.to_owned(),
            reason,
        };
        let left = deadline
            .saturating_duration_since(Instant::now())
            .as_millis();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{address}{path}"))
            .header(TIME_LEFT, left.to_string())
            .body(Full::new(body))
            .map_err(|error| never_sent(error.to_string()))?;
        request.headers_mut().extend(header);
        match tokio::time::timeout_at(deadline, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => Err(never_sent(chain(&error))),
            Ok(Err(error)) => Err(no_answer(address, &chain(&error))),
            Err(_) => Err(no_answer(address, "the time is over")),
        }
    }

    /// The body of an answer, of at most `limit` bytes.
    pub async fn body(
        address: &str,
        response: Response<Incoming>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Bytes, PeerError> {
        let body = Limited::new(response.into_body(), limit).collect();
        match tokio::time::timeout_at(deadline, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(no_answer(address, &error.to_string())),
            Err(_) => Err(no_answer(address, "the time is over")),
        }
    }
}

fn no_answer(address: &str, reason: &str) -> PeerError {
    PeerError::NoAnswer {
        address: address.to_owned(),
        reason: reason.to_owned(),
    }
}

/// The error with its sources: the client's own text says only "client error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
