//! The network between nodes, and from clients to nodes: requests reach the other node's router after a while, or not; their
//! answers come back after a while, or not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Request, Response};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use http_body_util::Full;
use kvcluster_node::peer::{PeerError, Transport};
use tokio::sync::oneshot;
use tower::ServiceExt;

use crate::life::Life;
use crate::seen::{Point, Seen};

/// How long a connection is tried, and how long sent bytes may stay unacknowledged: as the product's client has it.
const CONNECT: Duration = Duration::from_millis(500);
const UNACKNOWLEDGED: Duration = Duration::from_millis(1_500);

/// Pause between two looks whether a process goes on.
const PAUSED: Duration = Duration::from_millis(10);

/// Of a hundred pieces of a snapshot so many do not come, and none behind them: snapshots are short here, and would seldom be met
/// by a fault.
const STREAM_BREAKS_PERCENT: u8 = 20;

/// Who sends: a node, or a client that no cut concerns.
pub(crate) type Sender = Option<usize>;

/// What everybody shares.
#[derive(Clone)]
pub(crate) struct Network(Arc<Mutex<State>>);

struct State {
    hosts: BTreeMap<usize, Host>,
    /// From whom to whom nothing passes.
    cuts: BTreeSet<(usize, usize)>,
    /// Connections that are kept open.
    open: BTreeSet<(usize, usize)>,
    slowest: Duration,
    /// Of a hundred answers between nodes, so many are lost with their connections.
    lost_answers: u8,
    rng: fastrand::Rng,
    seen: Seen,
}

#[derive(Clone)]
struct Host {
    router: Router,
    life: Life,
}

/// The way of one node to the others.
pub(crate) struct Way {
    pub(crate) network: Network,
    pub(crate) from: usize,
}

impl Network {
    pub(crate) fn new(rng: fastrand::Rng, seen: Seen) -> Self {
        Self(Arc::new(Mutex::new(State {
            hosts: BTreeMap::new(),
            cuts: BTreeSet::new(),
            open: BTreeSet::new(),
            slowest: Duration::from_millis(2),
            lost_answers: 0,
            rng,
            seen,
        })))
    }

    pub(crate) fn address(node: usize) -> String {
        format!("node-{node}:8080")
    }

    /// A process listens.
    pub(crate) fn listen(&self, node: usize, router: Router, life: Life) {
        self.lock().hosts.insert(node, Host { router, life });
    }

    /// A process is gone, and its connections with it.
    pub(crate) fn leave(&self, node: usize) {
        let mut state = self.lock();
        state.hosts.remove(&node);
        state.open.retain(|(from, to)| *from != node && *to != node);
    }

    pub(crate) fn cut(&self, from: usize, to: usize) {
        self.lock().cuts.insert((from, to));
    }

    pub(crate) fn heal(&self) {
        let mut state = self.lock();
        state.cuts.clear();
        state.lost_answers = 0;
        state.slowest = Duration::from_millis(2);
    }

    pub(crate) fn set_lost_answers(&self, of_a_hundred: u8) {
        self.lock().lost_answers = of_a_hundred;
    }

    pub(crate) fn set_slowest(&self, slowest: Duration) {
        self.lock().slowest = slowest;
    }

    /// Sends a request and waits for its answer, for as long as that takes.
    pub(crate) async fn send(
        &self,
        from: Sender,
        to: usize,
        request: Request<Body>,
    ) -> Result<Response<Body>, PeerError> {
        let host = self.connect(from, to).await?;
        let is_stream = request.uri().path().ends_with("/snapshot");
        let life = host.life.clone();
        self.delay().await;
        if self.is_cut(from, to) {
            return Err(self.unacknowledged(from, to).await);
        }
        let (answer, answered) = oneshot::channel();
        host.life.spawn(async move {
            let response = host.router.oneshot(request).await;
            let (head, body) = response.expect("it cannot fail").into_parts();
            if is_stream {
                let _ = answer.send(Response::from_parts(head, body));
                return;
            }
            // An answer that breaks off is none; and who does not wait any more does not need it.
            if let Ok(bytes) = to_bytes(body, usize::MAX).await {
                let _ = answer.send(Response::from_parts(head, Body::from(bytes)));
            }
        });
        let Ok(response) = answered.await else {
            return Err(no_answer(to, "connection reset"));
        };
        self.delay().await;
        if from.is_some_and(|from| self.is_cut(Some(to), from)) {
            return Err(self.unacknowledged(from, to).await);
        }
        if from.is_some() && self.loses_answer() {
            self.lock().seen.reach(Point::PeerAnswerLost);
            return Err(no_answer(to, "connection reset"));
        }
        if is_stream && let Some(from) = from {
            return Ok(response.map(|body| self.stream(from, to, life, body)));
        }
        Ok(response)
    }

    /// A long answer, piece by piece, until the sender is gone or nothing passes any more.
    fn stream(&self, from: usize, to: usize, life: Life, body: Body) -> Body {
        let network = self.clone();
        let pieces = stream::unfold(body.into_data_stream(), move |mut pieces| {
            let (network, life) = (network.clone(), life.clone());
            async move {
                while life.is_paused() {
                    tokio::time::sleep(PAUSED).await;
                }
                network.delay().await;
                if life.is_dead() || network.is_cut(Some(to), from) || network.breaks_stream() {
                    return Some((Err("connection reset".into()), pieces));
                }
                let piece = pieces.next().await?;
                Some((piece.map_err(axum::BoxError::from), pieces))
            }
        });
        Body::from_stream(pieces)
    }

    async fn connect(&self, from: Sender, to: usize) -> Result<Host, PeerError> {
        let is_open = from.is_some_and(|from| self.lock().open.contains(&(from, to)));
        let blocked = self.is_cut(from, to) || from.is_some_and(|from| self.is_cut(Some(to), from));
        if blocked && !is_open {
            tokio::time::sleep(CONNECT).await;
            self.lock().seen.reach(Point::PeerUnreachable);
            return Err(never_sent(to, "connection timed out"));
        }
        let mut state = self.lock();
        let Some(host) = state.hosts.get(&to).cloned() else {
            return Err(never_sent(to, "connection refused"));
        };
        state.open.extend(from.map(|from| (from, to)));
        Ok(host)
    }

    /// What was sent is not acknowledged, or its answer is not heard: the connection is given up after a while.
    async fn unacknowledged(&self, from: Sender, to: usize) -> PeerError {
        tokio::time::sleep(UNACKNOWLEDGED).await;
        let mut state = self.lock();
        if let Some(from) = from {
            state.open.remove(&(from, to));
        }
        state.seen.reach(Point::PeerSilent);
        no_answer(to, "timed out")
    }

    fn is_cut(&self, from: Sender, to: usize) -> bool {
        from.is_some_and(|from| self.lock().cuts.contains(&(from, to)))
    }

    fn loses_answer(&self) -> bool {
        let mut state = self.lock();
        let roll = state.rng.u8(..100);
        roll < state.lost_answers
    }

    fn breaks_stream(&self) -> bool {
        let mut state = self.lock();
        let roll = state.rng.u8(..100);
        roll < STREAM_BREAKS_PERCENT.max(state.lost_answers)
    }

    async fn delay(&self) {
        let delay = {
            let mut state = self.lock();
            let most = u64::try_from(state.slowest.as_micros()).expect("it is short");
            Duration::from_micros(state.rng.u64(50..=most.max(50)))
        };
        tokio::time::sleep(delay).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for Way {
    fn send<'a>(
        &'a self,
        address: &'a str,
        request: Request<Full<Bytes>>,
    ) -> BoxFuture<'a, Result<Response<Body>, PeerError>> {
        let number = address
            .strip_prefix("node-")
            .and_then(|rest| rest.strip_suffix(":8080"))
            .and_then(|number| number.parse().ok());
        let to = number.expect("the assignment names nodes by our addresses");
        self.network
            .send(Some(self.from), to, request.map(Body::new))
            .boxed()
    }
}

fn never_sent(to: usize, reason: &str) -> PeerError {
    PeerError::NeverSent {
        address: Network::address(to),
        reason: reason.to_owned(),
    }
}

fn no_answer(to: usize, reason: &str) -> PeerError {
    PeerError::NoAnswer {
        address: Network::address(to),
        reason: reason.to_owned(),
    }
}
