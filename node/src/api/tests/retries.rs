//! Writes with an idempotency key: refused, repeated, forwarded and tried again.

use kvcluster_crds::slot::slot_of_key;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fake::COUNT;
use super::*;
use crate::service::SlotError;

async fn send_with(node: &Node, method: &str, target: &str, keys: &[&str]) -> Answer {
    let mut request = Request::builder().method(method).uri(target);
    for key in keys {
        request = request.header("idempotency-key", *key);
    }
    let request = request.body(Body::empty()).expect("a request");
    let router = node.routers.rest.clone();
    answer_of(router.oneshot(request).await.expect("infallible")).await
}

fn token_of(answer: &Answer) -> String {
    let token = answer.headers.get("kvcluster-token").expect("a token");
    token.to_str().expect("text").to_owned()
}

/// A leader that takes a write, does it, and breaks the connection; then it is gone, and `next` leads.
async fn dies_after_one_write(next: &Node, near: &Node) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let leader = Place::Node {
        node: kvcluster_crds::NodeId(2),
        address: next.listen().await,
    };
    let (slots, near, router) = (
        Arc::clone(&next.slots),
        Arc::clone(&near.slots),
        next.routers.rest.clone(),
    );
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = vec![0; 4096];
        let read = stream.read(&mut request).await.expect("a request");
        let head = String::from_utf8_lossy(&request[..read]).into_owned();
        let header = |name: &str| {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            let found = lines.filter(|(known, _)| known.eq_ignore_ascii_case(name));
            found
                .map(|(_, value)| value.to_owned())
                .next()
                .expect("it is sent on")
        };
        let path = head.split(' ').nth(1).expect("a path").to_owned();
        let body = head.split_once("\r\n\r\n").expect("a body").1.to_owned();
        let again = Request::post(path)
            .header("idempotency-key", header("idempotency-key"))
            .body(Body::from(body))
            .expect("a request");
        let done = router.oneshot(again).await.expect("infallible");
        assert_eq!(done.status(), StatusCode::OK);
        assert!(slots.applied(kvcluster_crds::SlotId(0)).is_some());
        let _ = stream.shutdown().await;
        near.move_all(&leader);
    });
    address
}

#[tokio::test]
async fn a_write_that_comes_again_gets_the_same_answer_and_takes_effect_once() {
    let node = Node::new();
    let put = send_with(&node, "PUT", "/key/a?value=1", &["r-1"]).await;
    assert_eq!(put.text(), (200, "PUT success"));
    node.send("PUT", "/key/a?value=2").await;
    let again = send_with(&node, "PUT", "/key/a?value=1", &["r-1"]).await;
    assert_eq!(again.text(), (200, "PUT success"));
    assert_eq!(token_of(&again), token_of(&put), "the same version");
    assert_eq!(node.send("GET", "/key/a").await.text(), (200, "2"));
    let delete = send_with(&node, "DELETE", "/key/a", &["r-2"]).await;
    node.send("PUT", "/key/a?value=3").await;
    let again = send_with(&node, "DELETE", "/key/a", &["r-2"]).await;
    assert_eq!(again.text(), (200, "DELETE success"));
    assert_eq!(token_of(&again), token_of(&delete));
    assert_eq!(node.send("GET", "/key/a").await.text(), (200, "3"));
}

#[tokio::test]
async fn a_key_that_was_used_for_another_write_is_refused() {
    let (near, far) = (Node::new(), Node::new());
    near.slots.move_all(&node_at(&far.listen().await));
    send_with(&near, "PUT", "/key/a?value=1", &["r"]).await;
    for (method, target) in [("PUT", "/key/a?value=2"), ("DELETE", "/key/a")] {
        let answer = send_with(&near, method, target, &["r"]).await;
        assert_eq!(
            answer.problem(),
            problem(422, "idempotency_key_reused", "none")
        );
    }
    assert_eq!(far.send("GET", "/key/a").await.text(), (200, "1"));
}

#[tokio::test]
async fn a_key_that_makes_no_sense_is_refused_by_name() {
    let node = Node::new();
    let long = "k".repeat(129);
    for keys in [[""].as_slice(), &["a b"], &[&long], &["a", "b"]] {
        for (method, target) in [("PUT", "/key/a?value=1"), ("DELETE", "/key/a")] {
            let answer = send_with(&node, method, target, keys).await;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            assert_eq!(answer.problem(), problem(400, "bad_request", "none"));
            assert!(
                text.contains("idempotency-key") && text.contains("128"),
                "{text}"
            );
        }
    }
    assert_eq!(node.send("GET", "/scan").await.text(), (200, "{}"));
}

#[tokio::test]
async fn a_write_whose_connection_broke_is_sent_to_the_next_leader_when_it_has_a_key() {
    let (near, next) = (Node::new(), Node::new());
    let dying = dies_after_one_write(&next, &near).await;
    near.slots.move_all(&node_at(&dying));
    let answer = send_with(&near, "PUT", "/key/a?value=1", &["r"]).await;
    assert_eq!(answer.text(), (200, "PUT success"));
    let slot = slot_of_key(b"a", COUNT);
    let records = next.slots.applied(slot).expect("a replica").0;
    assert_eq!(records, 1, "it took effect once");
}

#[tokio::test]
async fn what_was_unknown_once_is_not_called_without_effect() {
    let slot = slot_of_key(b"a", COUNT);
    let unknown = problem(503, "outcome_unknown", "unknown");
    for later in [
        SlotError::Overloaded {
            what: "full".to_owned(),
        },
        SlotError::LogUnavailable { slot },
    ] {
        let node = Node::new();
        node.slots
            .refuse_writes([SlotError::Unknown { slot }, later]);
        let answer = send_with(&node, "PUT", "/key/a?value=1", &["r"]).await;
        assert_eq!(answer.problem(), unknown);
    }
    let node = Node::with_time(Duration::from_millis(100));
    node.slots
        .refuse_writes(vec![SlotError::Unknown { slot }; 1]);
    node.slots
        .refuse_writes(vec![SlotError::NotLeader { slot }; 50]);
    let answer = send_with(&node, "PUT", "/key/a?value=1", &["r"]).await;
    assert_eq!(answer.problem(), unknown);
    let node = Node::new();
    node.slots
        .refuse_writes([SlotError::Unknown { slot }, SlotError::KeyReused { slot }]);
    let answer = send_with(&node, "PUT", "/key/a?value=1", &["r"]).await;
    assert_eq!(
        answer.problem(),
        problem(422, "idempotency_key_reused", "none")
    );
    // Without a key nothing is tried again.
    let node = Node::new();
    node.slots.refuse_writes([SlotError::Unknown { slot }]);
    let answer = node.send("PUT", "/key/a?value=1").await;
    assert_eq!(answer.problem(), unknown);
    assert_eq!(node.send("GET", "/scan").await.text(), (200, "{}"));
}
