//! Two nodes on the loopback: forwarding, its retries, and scans across nodes.

use kvcluster_crds::SlotId;
use kvcluster_crds::slot::slot_of_key;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fake::COUNT;
use super::*;
use crate::effect::Effect;
use crate::service::SlotError;

/// A node that leads nothing, beside one that leads everything and listens.
async fn two() -> (Node, Node) {
    let (near, far) = (Node::new(), Node::new());
    let address = far.listen().await;
    near.slots.move_all(&node_at(&address));
    (near, far)
}

/// Listens, reads a request's beginning and breaks the connection; says how often.
async fn breaker() -> (String, Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    (address, count)
}

#[tokio::test]
async fn requests_go_to_the_leader_and_come_back() {
    let (near, far) = two().await;
    assert_eq!(
        near.send("GET", "/key/a").await.text(),
        (404, "Key not found")
    );
    assert_eq!(
        near.send("PUT", "/key/a?value=x+y").await.text(),
        (200, "PUT success")
    );
    assert_eq!(far.send("GET", "/key/a").await.text(), (200, "x y"));
    assert_eq!(near.send("GET", "/key/a").await.text(), (200, "x y"));
    assert_eq!(
        near.send("PUT", "/key/a?value=").await.text(),
        (200, "PUT success")
    );
    assert_eq!(
        near.send("GET", "/key/a").await.text(),
        (200, ""),
        "empty is not absent"
    );
    assert_eq!(
        near.send("DELETE", "/key/a").await.text(),
        (200, "DELETE success")
    );
    assert_eq!(
        near.send("GET", "/key/a").await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn the_leaders_refusals_are_passed_on() {
    let (near, far) = two().await;
    let slot = SlotId(0);
    for (error, expected) in [
        (
            SlotError::Unknown { slot },
            problem(503, "outcome_unknown", "unknown"),
        ),
        (
            SlotError::Overloaded {
                what: "full".to_owned(),
            },
            problem(429, "overloaded", "none"),
        ),
        (
            SlotError::LogUnavailable { slot },
            problem(503, "log_unavailable", "none"),
        ),
    ] {
        far.slots.refuse_writes([error]);
        assert_eq!(near.send("PUT", "/key/a?value=1").await.problem(), expected);
    }
    far.slots.store.away.store(true, Ordering::Relaxed);
    assert_eq!(
        near.send("GET", "/key/a").await.problem(),
        problem(503, "store_unavailable", "none")
    );
}

#[tokio::test]
async fn a_node_that_does_not_lead_any_more_is_asked_no_second_time() {
    let (near, far) = two().await;
    far.slots.move_all(&Place::Nobody);
    let elect = async {
        // The old leader has said that it is none.
        while far.slots.read_count.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        near.slots.move_all(&Place::Here);
    };
    let (answer, ()) = tokio::join!(near.send("GET", "/key/a"), elect);
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    let near = Node::with_time(Duration::from_millis(200));
    near.slots.move_all(&node_at(&far.listen().await));
    let answer = near.send("PUT", "/key/a?value=1").await;
    assert_eq!(answer.problem(), problem(503, "no_leader", "none"));
}

#[tokio::test]
async fn a_write_is_tried_again_when_no_connection_was_made() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let closed = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let near = Node::with_time(Duration::from_millis(200));
    near.slots.move_all(&node_at(&closed));
    let answer = near.send("PUT", "/key/a?value=1").await;
    assert_eq!(answer.problem(), problem(503, "no_leader", "none"));
    let near = Node::new();
    near.slots.move_all(&node_at(&closed));
    let elect = async {
        tokio::task::yield_now().await;
        near.slots.move_all(&Place::Here);
    };
    let (answer, ()) = tokio::join!(near.send("PUT", "/key/a?value=1"), elect);
    assert_eq!(answer.text(), (200, "PUT success"));
}

#[tokio::test]
async fn a_write_whose_connection_broke_is_unknown_and_a_read_is_tried_again() {
    let (address, count) = breaker().await;
    let near = Node::new();
    near.slots.move_all(&node_at(&address));
    for method in ["PUT", "DELETE"] {
        let answer = near.send(method, "/key/a?value=1").await;
        assert_eq!(answer.problem(), problem(503, "outcome_unknown", "unknown"));
    }
    assert_eq!(count.load(Ordering::Relaxed), 2, "each was sent once");
    let elect = async {
        while count.load(Ordering::Relaxed) < 4 {
            tokio::task::yield_now().await;
        }
        near.slots.move_all(&Place::Here);
    };
    let (answer, ()) = tokio::join!(near.send("GET", "/key/a"), elect);
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_leader_that_hangs_holds_no_read_back_once_there_is_another() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let near = Node::new();
    near.slots
        .move_all(&node_at(&listener.local_addr().expect("bound").to_string()));
    let elect = async {
        let (stream, _) = listener.accept().await.expect("a connection");
        near.slots.move_all(&Place::Here);
        stream
    };
    let (answer, _stream) = tokio::join!(near.send("GET", "/key/a"), elect);
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_forwarded_request_is_never_forwarded_again() {
    let (near, far) = two().await;
    let slot = slot_of_key(b"a", COUNT);
    let effect = Effect::Put {
        key: "a".into(),
        value: "1".into(),
    };
    let body = internal::encode_effect(&effect);
    let to = async |path: String, body: Bytes| {
        send(&near.routers.rest, "POST", &path, body.into()).await
    };
    let not_leader = problem(503, "not_leader", "none");
    assert_eq!(
        to(internal::write_path(slot), body.clone()).await.problem(),
        not_leader
    );
    assert_eq!(
        to(internal::read_path(slot), "a".into()).await.problem(),
        not_leader
    );
    assert_eq!(
        to(internal::scan_path(slot), Bytes::new()).await.problem(),
        not_leader
    );
    assert_eq!(
        far.send("GET", "/key/a").await.status,
        StatusCode::NOT_FOUND
    );
    let other = SlotId((slot.0 + 1) % COUNT);
    let bad = problem(400, "bad_request", "none");
    assert_eq!(
        to(internal::write_path(other), body).await.problem(),
        bad,
        "not the key's slot"
    );
    assert_eq!(
        to(internal::read_path(slot), Bytes::new()).await.problem(),
        bad
    );
    assert_eq!(
        to(internal::write_path(slot), "x".into()).await.problem(),
        bad
    );
    assert_eq!(
        to(internal::scan_path(SlotId(COUNT)), Bytes::new())
            .await
            .problem(),
        bad
    );
}

#[tokio::test]
async fn a_scan_gathers_the_slots_of_all_nodes() {
    let (near, far) = two().await;
    for slot in (0..COUNT).step_by(2) {
        near.slots.move_one(slot, Place::Here);
    }
    let mut expected = std::collections::BTreeMap::new();
    for number in 0..3_000 {
        let (key, value) = (format!("k{number}"), format!("v{number}"));
        let slot = slot_of_key(key.as_bytes(), COUNT);
        let owner = if slot.0.is_multiple_of(2) {
            &near
        } else {
            &far
        };
        let effect = Effect::Put {
            key: key.clone().into(),
            value: value.clone().into(),
        };
        owner.slots.apply(slot, vec![effect]);
        expected.insert(key, value);
    }
    let answer = near.send("GET", "/scan").await;
    let pairs: std::collections::BTreeMap<String, String> =
        serde_json::from_slice(&answer.body).expect("a flat object");
    assert_eq!(pairs, expected);
    let pairs = std::str::from_utf8(&answer.body)
        .expect("text")
        .matches(':')
        .count();
    assert_eq!(pairs, expected.len(), "none twice");
}

#[tokio::test]
async fn a_peers_broken_stream_breaks_the_scan_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let near = Node::new();
    near.send("PUT", "/key/a?value=1").await;
    let free = slot_of_key(b"a", COUNT).0;
    near.slots.move_one(
        (free + 1) % COUNT,
        node_at(&listener.local_addr().expect("bound").to_string()),
    );
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            // A whole answer by its length, and no row in it: only the missing end mark tells.
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
    });
    near.expect_scan_broken_off().await;
}
