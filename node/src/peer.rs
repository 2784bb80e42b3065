//! The other nodes, over kept-open HTTP/1.1 connections: what this node cannot answer itself goes to the slot's leader.
//!
//! Requests between nodes have routes of their own (`api/internal.rs`), which never forward again. What decides whether a
//! write may be tried again is [`PeerError`]: `NeverSent` means that no connection was made. What carries them is an
//! argument, so that nodes can be run without a network.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, Response};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full, Limited};
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

/// Carries requests to other nodes.
pub trait Transport: Send + Sync + 'static {
    /// Sends a request to `address` (`host:port`) and waits for the head of the answer, however long that takes.
    fn send<'a>(
        &'a self,
        address: &'a str,
        request: Request<Full<Bytes>>,
    ) -> BoxFuture<'a, Result<Response<Body>, PeerError>>;
}

/// The other nodes.
#[derive(Clone)]
pub struct Peers(Arc<dyn Transport>);

/// Kept-open connections.
struct Http(Client<HttpConnector, Full<Bytes>>);

impl Transport for Http {
    fn send<'a>(
        &'a self,
        address: &'a str,
        request: Request<Full<Bytes>>,
    ) -> BoxFuture<'a, Result<Response<Body>, PeerError>> {
        let answer = self.0.request(request).map(move |answer| match answer {
            Ok(response) => Ok(response.map(Body::new)),
            Err(error) if error.is_connect() => Err(PeerError::NeverSent {
                address: address.to_owned(),
                reason: chain(&error),
            }),
            Err(error) => Err(no_answer(address, &chain(&error))),
        });
        answer.boxed()
    }
}

impl Peers {
    /// Over a transport of somebody else's.
    pub fn over(transport: Arc<dyn Transport>) -> Self {
        Self(transport)
    }

    /// Over HTTP; no connection yet.
    pub fn over_http() -> Self {
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
        Self(Arc::new(Http(client)))
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
    ) -> Result<Response<Body>, PeerError> {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .as_millis();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{address}{path}"))
            .header(TIME_LEFT, left.to_string())
            .body(Full::new(body))
            .map_err(|error| PeerError::NeverSent {
                address: address.to_owned(),
                reason: error.to_string(),
            })?;
        request.headers_mut().extend(header);
        tokio::time::timeout_at(deadline, self.0.send(address, request))
            .await
            .unwrap_or_else(|_| Err(no_answer(address, "the time is over")))
    }

    /// The body of an answer, of at most `limit` bytes.
    pub async fn body(
        address: &str,
        response: Response<Body>,
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
