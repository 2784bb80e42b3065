//! The admin port: probes, metrics, status. `/readyz` depends neither on Kafka nor on PostgreSQL: a Service without endpoints
//! could not even answer 503 with a body.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};

use crate::api::Shared;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the node wants requests: not yet at its start, not any more while it stops. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Not ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says whether the node is ready.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    /// Whether the node is ready.
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route(
            "/status",
            get(async |State(shared): State<Arc<Shared>>| Json(shared.slots.status())),
        )
}

async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    if shared.readiness.is_ready() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n")
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let text = shared.metrics.encode(&shared.slots.status());
    ([(header::CONTENT_TYPE, OPENMETRICS)], text)
}
