//! The node's HTTP: the REST port (classic routes, scan, routes between nodes) and the admin port.
//!
//! One router per resource. What they share: where slots are and how they are asked (`api/dispatch.rs`), one mapping of errors
//! (`api/problem.rs`), limits (`api/admission.rs`). Nothing here decides what a write means; that is the slots' and the log's.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::metrics::{Metrics, RequestLabels};
use crate::peer::Peers;
use crate::runtime::clock::Clock;
use crate::service::Slots;
use crate::store::{Snapshots, Store};

mod admin;
mod admission;
mod classic;
mod decode;
mod dispatch;
mod frames;
mod idempotency;
mod internal;
mod level;
mod long_query;
mod problem;
mod scan;
mod server;
mod snapshots;
#[cfg(test)]
mod tests;

pub use admin::Readiness;
pub use dispatch::REQUEST_SECONDS;
pub use problem::{EffectOnData, ErrorCode, Meaning, Problem};
pub use server::{DRAIN_SECONDS, Ending, serve};
pub use snapshots::{Wanted, ask_snapshot, ask_status};

use admission::Admission;

/// Scans of the whole cluster that a node serves at once: each holds a cut open at several leaders.
const SCANS_MAX: usize = 4;

/// What the API stands on.
pub struct Api {
    /// The slots of this node, and who leads the others.
    pub slots: Arc<dyn Slots>,
    /// Their state.
    pub store: Arc<dyn Store>,
    /// The same, for other nodes as a whole.
    pub snapshots: Arc<dyn Snapshots>,
    /// Counted into.
    pub metrics: Arc<Metrics>,
    /// What `/readyz` says.
    pub readiness: Readiness,
    /// The way to the other nodes.
    pub peers: Peers,
    /// The clock of leases.
    pub clock: Clock,
}

/// The two ports.
pub struct Routers {
    /// For clients and other nodes.
    pub rest: Router,
    /// For probes, metrics and the operator.
    pub admin: Router,
}

struct Shared {
    slots: Arc<dyn Slots>,
    store: Arc<dyn Store>,
    snapshots: Arc<dyn Snapshots>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    peers: Peers,
    clock: Clock,
    admission: Admission,
    scans: Arc<Semaphore>,
    /// Longest time of a client's request.
    request_time: Duration,
}

impl Api {
    /// The routers; to be served by [`serve`].
    pub fn routers(self) -> Routers {
        self.routers_within(Duration::from_secs(REQUEST_SECONDS))
    }

    fn routers_within(self, request_time: Duration) -> Routers {
        let shared = Arc::new(Shared {
            slots: self.slots,
            store: self.store,
            snapshots: self.snapshots,
            admission: Admission::new(self.metrics.rest.in_flight.clone()),
            metrics: self.metrics,
            readiness: self.readiness,
            peers: self.peers,
            clock: self.clock,
            scans: Arc::new(Semaphore::new(SCANS_MAX)),
            request_time,
        });
        let rest = Router::new()
            .merge(classic::router())
            .merge(scan::router())
            .merge(internal::router())
            .merge(snapshots::router())
            .fallback(unknown_path)
            .method_not_allowed_fallback(wrong_method)
            .layer(middleware::from_fn_with_state(
                Arc::clone(&shared),
                admit_and_count,
            ));
        let admin = admin::router().fallback(unknown_path);
        Routers {
            rest: rest.with_state(Arc::clone(&shared)),
            admin: admin.with_state(shared),
        }
    }
}

async fn unknown_path(request: Request) -> Problem {
    let path: String = request.uri().path().chars().take(200).collect();
    Problem::new(
        ErrorCode::UnknownPath,
        format!("there is nothing at {path}"),
    )
}

async fn wrong_method(method: Method) -> Problem {
    Problem::new(
        ErrorCode::MethodNotAllowed,
        format!("{method} is not among those in Allow"),
    )
}

/// Around every request of the REST port.
async fn admit_and_count(
    State(shared): State<Arc<Shared>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let begin = Instant::now();
    let route = route_name(path.as_ref().map(MatchedPath::as_str));
    let method = method_name(request.method());
    let admitted = if route.starts_with("/internal/") {
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|text| text.to_str().ok()?.parse().ok());
        shared.admission.peer(length.unwrap_or(0))
    } else {
        shared.admission.client()
    };
    let response = match admitted {
        Ok(admitted) => admitted.hold(next.run(request).await),
        Err(problem) => problem.into_response(),
    };
    let labels = RequestLabels {
        route,
        method,
        status: response.status().as_u16(),
    };
    shared.metrics.observe_request(&labels, begin.elapsed());
    response
}

/// Labels come from a fixed set: a client cannot make new ones.
fn route_name(path: Option<&str>) -> &'static str {
    let known = [
        classic::ROUTE,
        classic::EMPTY_ROUTE,
        scan::ROUTE,
        internal::WRITE_ROUTE,
        internal::READ_ROUTE,
        internal::SCAN_ROUTE,
        snapshots::SNAPSHOT_ROUTE,
        snapshots::STATUS_ROUTE,
    ];
    known
        .into_iter()
        .find(|&known| Some(known) == path)
        .unwrap_or("other")
}

fn method_name(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS"];
    known
        .into_iter()
        .find(|&known| known == method.as_str())
        .unwrap_or("other")
}
