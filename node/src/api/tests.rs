//! The routers over slots and a store that are in memory, alone and as nodes of a cluster.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use bytes::Bytes;
use serde_json::Value;
use tokio::net::TcpListener;
use tower::ServiceExt;

use super::*;
use crate::service::Place;

mod classic;
mod cluster;
mod fake;
mod levels;
mod retries;
mod wire;

use fake::FakeSlots;

/// A node in memory.
struct Node {
    slots: Arc<FakeSlots>,
    routers: Routers,
    readiness: Readiness,
}

/// An answer, read whole.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: axum::http::HeaderMap,
    body: Bytes,
}

impl Node {
    /// Leads every slot.
    fn new() -> Self {
        Self::with_time(Duration::from_secs(5))
    }

    /// Whose requests may take so long.
    fn with_time(request_time: Duration) -> Self {
        let slots = FakeSlots::new();
        let readiness = Readiness::new();
        let api = Api {
            slots: Arc::clone(&slots) as Arc<dyn Slots>,
            store: Arc::clone(&slots.store) as Arc<dyn Store>,
            snapshots: Arc::new(crate::store::NoSnapshots),
            metrics: Metrics::new(),
            readiness: readiness.clone(),
            peers: Peers::over_http(),
            clock: Clock::of_machine(),
        };
        Self {
            slots,
            routers: api.routers_within(request_time),
            readiness,
        }
    }

    async fn send(&self, method: &str, target: &str) -> Answer {
        send(&self.routers.rest, method, target, Body::empty()).await
    }

    /// Begins `GET /scan`; its body is still to be read.
    async fn begin_scan(&self) -> Response {
        let request = Request::get("/scan")
            .body(Body::empty())
            .expect("a request");
        let router = self.routers.rest.clone();
        router.oneshot(request).await.expect("infallible")
    }

    /// A scan that cannot finish is refused, or broken off; never closed as if it were whole.
    async fn expect_scan_broken_off(&self) {
        let response = self.begin_scan().await;
        if response.status() == StatusCode::OK {
            to_bytes(response.into_body(), usize::MAX)
                .await
                .expect_err("no whole body");
        } else {
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
    }

    /// Serves the REST port; answers `host:port`. Until the end of the test.
    async fn listen(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        tokio::spawn(serve(
            listener,
            self.routers.rest.clone(),
            Ending::default(),
        ));
        address
    }
}

async fn send(router: &Router, method: &str, target: &str, body: Body) -> Answer {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let request = Request::builder()
        .method(method)
        .uri(target)
        .body(body)
        .expect("a request");
    answer_of(router.clone().oneshot(request).await.expect("infallible")).await
}

async fn answer_of(response: Response) -> Answer {
    let (head, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.expect("a whole body");
    Answer {
        status: head.status,
        headers: head.headers,
        body,
    }
}

impl Answer {
    fn text(&self) -> (u16, &str) {
        (
            self.status.as_u16(),
            std::str::from_utf8(&self.body).expect("text"),
        )
    }

    /// Status, `code` and `effect` of a problem, whose other parts are checked.
    fn problem(&self) -> (u16, String, String) {
        assert_eq!(
            self.headers[header::CONTENT_TYPE],
            "application/problem+json",
            "{self:?}"
        );
        let json: Value = serde_json::from_slice(&self.body).expect("JSON");
        assert_eq!(json["status"], self.status.as_u16());
        assert!(
            json["title"].is_string()
                && json["detail"].is_string()
                && json["retryable"].is_boolean()
        );
        let busy = matches!(self.status.as_u16(), 429 | 503);
        assert_eq!(self.headers.contains_key(header::RETRY_AFTER), busy);
        let text = |name: &str| json[name].as_str().expect("text").to_owned();
        (self.status.as_u16(), text("code"), text("effect"))
    }
}

fn problem(status: u16, code: &str, effect: &str) -> (u16, String, String) {
    (status, code.to_owned(), effect.to_owned())
}

fn node_at(address: &str) -> Place {
    Place::Node {
        node: kvcluster_crds::NodeId(1),
        address: address.to_owned(),
    }
}

#[tokio::test]
async fn the_admin_port_answers_probes_metrics_and_status() {
    let node = Node::new();
    let admin = &node.routers.admin;
    let get = async |path: &str| send(admin, "GET", path, Body::empty()).await;
    assert_eq!(get("/livez").await.status, StatusCode::OK);
    assert_eq!(get("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
    node.readiness.set(true);
    node.slots.store.away.store(true, Ordering::Relaxed);
    assert_eq!(
        get("/readyz").await.status,
        StatusCode::OK,
        "whatever PostgreSQL does"
    );
    assert_eq!(
        node.send("PUT", "/key/a?value=1").await.status,
        StatusCode::OK
    );
    assert_eq!(
        node.send("GET", "/some/client's/path").await.status,
        StatusCode::NOT_FOUND
    );
    let metrics = get("/metrics").await;
    let (_, text) = metrics.text();
    for line in [
        "kvcluster_http_requests_total{route=\"/key/{key}\",method=\"PUT\",status=\"200\"} 1",
        "kvcluster_http_requests_total{route=\"other\",method=\"GET\",status=\"404\"} 1",
        "kvcluster_http_request_duration_seconds_count{route=\"/key/{key}\",method=\"PUT\"} 1",
        "kvcluster_http_in_flight 0",
        "kvcluster_slot_applied_offset{slot=\"0\"} 7",
        "kvcluster_slot_unflushed_records{slot=\"0\"} 3",
        "kvcluster_unflushed_bytes 42",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    let status: kvcluster_crds::NodeStatus =
        serde_json::from_slice(&get("/status").await.body).expect("a status");
    assert_eq!(status, node.slots.status());
    assert_eq!(get("/key/a").await.problem().0, 404);
}
