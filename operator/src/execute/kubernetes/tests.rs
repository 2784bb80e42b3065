//! Against an API server that is played: which requests go out, and what comes of the answers.

use hyper::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tower_test::mock;

use super::*;
use crate::fixtures::cluster;

type Server = mock::Handle<Request<Body>, Response<Body>>;

fn fake() -> (Client, Server) {
    let (service, server) = mock::pair::<Request<Body>, Response<Body>>();
    (Client::new(service, "default"), server)
}

/// Takes the next request, which must be `method path`, and answers it; gives the request's body and query.
async fn answer(
    server: &mut Server,
    (method, path): (&str, &str),
    status: u16,
    body: &Value,
) -> (Value, String) {
    let (request, send) = server.next_request().await.expect("a request");
    assert_eq!(
        (request.method().as_str(), request.uri().path()),
        (method, path)
    );
    let query = request.uri().query().unwrap_or_default().to_owned();
    let bytes = request.into_body().collect_bytes().await.expect("a body");
    let response = Response::builder()
        .status(status)
        .body(Body::from(body.to_string().into_bytes()));
    send.send_response(response.expect("a response"));
    (serde_json::from_slice(&bytes).unwrap_or_default(), query)
}

fn failure(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
            "reason": reason, "message": reason })
}

const BUDGET: &str = "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/demo";

#[tokio::test]
async fn an_object_of_another_owner_is_left_alone() {
    let (client, mut server) = fake();
    let target = cluster().target();
    let object = Object::Budget(Box::new(build::pdb::budget(&target)));
    let mut live = build::pdb::budget(&target);
    live.metadata.owner_references.as_mut().expect("an owner")[0].uid = "u0".to_owned();
    let live = serde_json::to_value(&live).expect("an object");
    let play = answer(&mut server, ("GET", BUDGET), 200, &live);
    let (done, _) = tokio::join!(apply(&client, &target, &object), play);
    let error = done.expect_err("refused");
    assert_eq!(error.reason(), "ObjectOfAnotherOwner");
    assert!(
        error.to_string().contains("KvCluster demo with UID u0"),
        "{error}"
    );
}

#[tokio::test]
async fn a_missing_object_is_applied_by_one_field_manager() {
    let (client, mut server) = fake();
    let target = cluster().target();
    let budget = build::pdb::budget(&target);
    let made = serde_json::to_value(&budget).expect("an object");
    let object = Object::Budget(Box::new(budget));
    let play = async {
        answer(&mut server, ("GET", BUDGET), 404, &failure(404, "NotFound")).await;
        answer(&mut server, ("PATCH", BUDGET), 200, &made).await
    };
    let (done, (_, query)) = tokio::join!(apply(&client, &target, &object), play);
    done.expect("applied");
    assert!(query.contains("fieldManager=kvcluster-operator"), "{query}");
    assert!(query.contains("force=true"), "{query}");
}

#[tokio::test]
pub(crate) async fn a_pod_is_deleted_by_its_uid_and_gone_is_fine() {
    let (client, mut server) = fake();
    let target = cluster().target();
    let path = "/api/v1/namespaces/shop/pods/demo-0-0";
    let missing = failure(404, "NotFound");
    let play = answer(&mut server, ("DELETE", path), 404, &missing);
    let (done, (body, _)) = tokio::join!(delete_pod(&client, &target, "demo-0-0", "uid-7"), play);
    done.expect("gone is fine");
    assert_eq!(body["preconditions"]["uid"], "uid-7");
}

#[tokio::test]
pub(crate) async fn a_status_is_not_written_over_a_change() {
    let (client, mut server) = fake();
    let cluster = cluster().with(|cluster| {
        cluster.metadata.resource_version = Some("41".to_owned());
    });
    let target = cluster.target();
    let object = cluster.build();
    let path = "/apis/kvcluster.dev/v1alpha1/namespaces/shop/kvclusters/demo/status";
    let conflict = failure(409, "Conflict");
    let play = answer(&mut server, ("PATCH", path), 409, &conflict);
    let (done, (body, _)) = tokio::join!(pin_log_id(&client, &target, &object, LogId(5)), play);
    assert_eq!(done.expect_err("a conflict").reason(), "Conflict");
    assert_eq!(body["metadata"]["resourceVersion"], "41");
    assert_eq!(body["status"]["logId"], "0000000000000005");
}

#[tokio::test]
async fn other_finalizers_are_kept() {
    let (client, mut server) = fake();
    let cluster = cluster().with(|cluster| {
        cluster.metadata.finalizers = Some(vec!["other.io/x".to_owned(), FINALIZER.to_owned()]);
        cluster.metadata.resource_version = Some("41".to_owned());
    });
    let (target, object) = (cluster.target(), cluster.build());
    let path = "/apis/kvcluster.dev/v1alpha1/namespaces/shop/kvclusters/demo";
    let done = serde_json::to_value(&object).expect("an object");
    let play = answer(&mut server, ("PATCH", path), 200, &done);
    let (done, (body, _)) = tokio::join!(set_finalizer(&client, &target, &object, false), play);
    done.expect("written");
    assert_eq!(body["metadata"]["finalizers"], json!(["other.io/x"]));
    assert_eq!(body["metadata"]["resourceVersion"], "41");
}
