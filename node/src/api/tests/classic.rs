//! Every row of the classic table, and every error.

use kvcluster_crds::slot::slot_of_key;

use super::fake::COUNT;
use super::*;
use crate::effect::{Effect, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::service::{LeaseClock, ReadPermit, SlotError};

#[tokio::test]
async fn statuses_and_bodies_to_the_letter() {
    let node = Node::new();
    let rows: [(&str, &str, u16, &str); 18] = [
        ("GET", "/scan", 200, "{}"),
        ("GET", "/key/a", 404, "Key not found"),
        ("PUT", "/key/a?value=1", 200, "PUT success"),
        ("GET", "/key/a", 200, "1"),
        ("PUT", "/key/a?value=2&value=3", 200, "PUT success"),
        ("GET", "/key/a", 200, "2"),
        ("PUT", "/key/a", 400, "Missing 'value' parameter"),
        ("PUT", "/key/a?valu=1", 400, "Missing 'value' parameter"),
        ("GET", "/key/a?value=ignored", 200, "2"),
        ("PUT", "/key/a?value=", 200, "PUT success"),
        ("GET", "/key/a", 200, ""),
        ("PUT", "/key/a?value", 200, "PUT success"),
        ("GET", "/scan", 200, r#"{"a":""}"#),
        ("DELETE", "/key/a", 200, "DELETE success"),
        ("DELETE", "/key/a", 200, "DELETE success"),
        ("GET", "/key/a", 404, "Key not found"),
        ("HEAD", "/key/a", 404, ""),
        ("GET", "/scan", 200, "{}"),
    ];
    for (method, target, status, body) in rows {
        let answer = node.send(method, target).await;
        assert_eq!(answer.text(), (status, body), "{method} {target}");
    }
}

#[tokio::test]
async fn keys_and_values_are_decoded_whole() {
    let node = Node::new();
    let rows = [
        ("/key/b64?value=aGk==", "/key/b64", "aGk=="),
        ("/key/hash?value=a%23b%26c%3Dd", "/key/hash", "a#b&c=d"),
        ("/key/plus?value=a+b%2Bc", "/key/plus", "a b+c"),
        ("/key/a%2Fb?value=slash", "/key/a%2fb", "slash"),
        ("/key/a+b?value=plus", "/key/a%2Bb", "plus"),
        ("/key/%C3%A9?value=%F0%9F%98%80", "/key/%c3%a9", "\u{1F600}"),
        ("/key/nul?value=a%00b", "/key/nul", "a\0b"),
        ("/key/percent?value=100%25", "/key/percent", "100%"),
        ("/key/quote?value=%22%5C%0A", "/key/quote", "\"\\\n"),
        ("/key/..?value=dots", "/key/..", "dots"),
    ];
    for (put, get, value) in rows {
        assert_eq!(
            node.send("PUT", put).await.text(),
            (200, "PUT success"),
            "{put}"
        );
        assert_eq!(node.send("GET", get).await.text(), (200, value), "{get}");
    }
    let scan = node.send("GET", "/scan").await;
    assert_eq!(scan.headers[header::CONTENT_TYPE], "application/json");
    let pairs: std::collections::BTreeMap<String, String> =
        serde_json::from_slice(&scan.body).expect("a flat object");
    assert_eq!(pairs.len(), rows.len());
    assert_eq!(pairs["a/b"], "slash");
    assert_eq!(pairs["nul"], "a\0b");
    assert_eq!(pairs["é"], "\u{1F600}");
}

#[tokio::test]
async fn bad_requests_are_refused_with_their_code() {
    let node = Node::new();
    let long_key = "k".repeat(KEY_BYTES_MAX + 1);
    let rows = [
        ("PUT", "/key/?value=1", 400, "empty_key"),
        ("GET", "/key/", 400, "empty_key"),
        ("DELETE", "/key/", 400, "empty_key"),
        ("PUT", "/key/a?value=%zz", 400, "bad_encoding"),
        ("PUT", "/key/a?value=1%", 400, "bad_encoding"),
        ("GET", "/key/%4", 400, "bad_encoding"),
        ("PUT", "/key/%ff?value=1", 400, "not_text"),
        ("PUT", "/key/a?value=%ff", 400, "not_text"),
        ("GET", &format!("/key/{long_key}"), 413, "key_too_long"),
        (
            "PUT",
            &format!("/key/{long_key}?value=1"),
            413,
            "key_too_long",
        ),
        ("GET", "/key/a/b", 404, "unknown_path"),
        ("GET", "/key", 404, "unknown_path"),
        ("GET", "/", 404, "unknown_path"),
        ("GET", "/scan/", 404, "unknown_path"),
        ("POST", "/nothing", 404, "unknown_path"),
    ];
    for (method, target, status, code) in rows {
        let answer = node.send(method, target).await;
        assert_eq!(
            answer.problem(),
            problem(status, code, "none"),
            "{method} {target}"
        );
    }
    let longest = "k".repeat(KEY_BYTES_MAX);
    assert_eq!(
        node.send("GET", &format!("/key/{longest}")).await.status,
        StatusCode::NOT_FOUND
    );
    let answer = node.send("PUT", "/key/a?value=ab%zz").await;
    assert!(
        answer.text().1.contains("%zz"),
        "the place is named: {answer:?}"
    );
    assert_eq!(
        node.send("GET", "/scan").await.text(),
        (200, "{}"),
        "nothing was written"
    );
}

#[tokio::test]
async fn other_methods_get_405_and_options_get_204() {
    let node = Node::new();
    let key = "GET, HEAD, PUT, DELETE, OPTIONS";
    for (method, target, allowed) in [
        ("POST", "/key/a", key),
        ("PATCH", "/key/a?value=1", key),
        ("BREW", "/key/a", key),
        ("POST", "/key/", key),
        ("PUT", "/scan", "GET, HEAD, OPTIONS"),
        ("DELETE", "/scan", "GET, HEAD, OPTIONS"),
        ("GET", "/internal/v1/slots/0/read", "POST"),
    ] {
        let answer = node.send(method, target).await;
        assert_eq!(
            answer.problem(),
            problem(405, "method_not_allowed", "none"),
            "{method} {target}"
        );
        assert_eq!(answer.headers[header::ALLOW], allowed, "{method} {target}");
    }
    for (target, allowed) in [("/key/a", key), ("/scan", "GET, HEAD, OPTIONS")] {
        let answer = node.send("OPTIONS", target).await;
        assert_eq!(
            (answer.text(), answer.headers[header::ALLOW].as_bytes()),
            ((204, ""), allowed.as_bytes())
        );
    }
}

#[tokio::test]
async fn what_the_slot_says_becomes_the_answer() {
    let node = Node::new();
    let slot = slot_of_key(b"a", COUNT);
    let rows = [
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
        (
            SlotError::Frozen {
                slot,
                reason: "r".to_owned(),
            },
            problem(503, "slot_frozen", "none"),
        ),
    ];
    for (error, expected) in rows {
        for method in ["PUT", "DELETE"] {
            node.slots.refuse_writes([error.clone()]);
            let answer = node.send(method, "/key/a?value=1").await;
            assert_eq!(answer.problem(), expected, "{method} {error}");
        }
    }
    assert_eq!(
        node.send("GET", "/key/a").await.status,
        StatusCode::NOT_FOUND
    );
    node.slots
        .refuse_writes([SlotError::NotLeader { slot }, SlotError::Lost { slot }]);
    let answer = node.send("PUT", "/key/a?value=1").await;
    assert_eq!(
        answer.text(),
        (200, "PUT success"),
        "tried again: nothing had happened"
    );
    let error = SlotError::LogUnavailable { slot };
    node.slots.reads.lock().expect("free").push_back(Err(error));
    assert_eq!(
        node.send("GET", "/key/a").await.problem(),
        problem(503, "log_unavailable", "none")
    );
}

#[tokio::test]
async fn a_slot_without_a_leader_is_waited_for_until_the_deadline() {
    let node = Node::with_time(Duration::from_millis(150));
    node.slots.move_all(&Place::Nobody);
    for (method, target) in [
        ("PUT", "/key/a?value=1"),
        ("GET", "/key/a"),
        ("DELETE", "/key/a"),
        ("GET", "/scan"),
    ] {
        let answer = node.send(method, target).await;
        assert_eq!(
            answer.problem(),
            problem(503, "no_leader", "none"),
            "{method} {target}"
        );
    }
    let node = Node::new();
    node.slots.move_all(&Place::Nobody);
    let put = node.send("PUT", "/key/a?value=1");
    let elect = async { node.slots.move_all(&Place::Here) };
    let (answer, ()) = tokio::join!(put, elect);
    assert_eq!(answer.text(), (200, "PUT success"));
}

#[tokio::test]
async fn a_read_whose_lease_ended_meanwhile_is_read_again() {
    let node = Node::new();
    node.slots.apply(
        slot_of_key(b"a", COUNT),
        vec![Effect::Put {
            key: "a".into(),
            value: "1".into(),
        }],
    );
    let ended = Arc::new(LeaseClock::default());
    let holds = Arc::new(LeaseClock::default());
    holds.set(u64::MAX);
    node.slots.reads.lock().expect("free").extend([
        Ok(ReadPermit::Lease(Arc::clone(&ended))),
        Ok(ReadPermit::Lease(ended)),
        Ok(ReadPermit::Lease(holds)),
    ]);
    assert_eq!(node.send("GET", "/key/a").await.text(), (200, "1"));
    assert_eq!(node.slots.read_count.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn without_postgres_cold_reads_and_scans_get_503_and_writes_go_on() {
    let node = Node::new();
    node.slots.store.away.store(true, Ordering::Relaxed);
    for target in ["/key/a", "/scan"] {
        let answer = node.send("GET", target).await;
        assert_eq!(
            answer.problem(),
            problem(503, "store_unavailable", "none"),
            "{target}"
        );
    }
    assert_eq!(
        node.send("PUT", "/key/a?value=1").await.text(),
        (200, "PUT success")
    );
    node.slots.store.away.store(false, Ordering::Relaxed);
    assert_eq!(node.send("GET", "/key/a").await.text(), (200, "1"));
}

#[tokio::test]
async fn a_scan_that_cannot_finish_is_broken_off() {
    let node = Node::new();
    for number in 0..20 {
        node.send("PUT", &format!("/key/k{number}?value=v")).await;
    }
    node.slots.store.breaks_scans.store(true, Ordering::Relaxed);
    node.expect_scan_broken_off().await;
    node.slots
        .store
        .breaks_scans
        .store(false, Ordering::Relaxed);
    let slot = slot_of_key(b"bin", COUNT);
    node.slots.apply(
        slot,
        vec![Effect::Put {
            key: "bin".into(),
            value: b"\xff".as_slice().into(),
        }],
    );
    // A value that is no text is neither changed nor left out.
    node.expect_scan_broken_off().await;
}

#[tokio::test]
async fn too_many_scans_and_requests_get_429() {
    let node = Node::new();
    let mut held = Vec::new();
    for _ in 0..SCANS_MAX {
        held.push(node.begin_scan().await);
    }
    assert_eq!(
        node.begin_scan().await.status(),
        StatusCode::TOO_MANY_REQUESTS
    );
    held.pop();
    assert_eq!(node.begin_scan().await.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_largest_value_is_taken_between_nodes_and_a_larger_one_is_not() {
    let node = Node::new();
    let slot = slot_of_key(b"big", COUNT);
    let path = internal::write_path(slot);
    for (bytes, status) in [(VALUE_BYTES_MAX, 200), (VALUE_BYTES_MAX + 1, 400)] {
        let effect = Effect::Put {
            key: "big".into(),
            value: vec![b'x'; bytes].into(),
        };
        let body = Body::from(internal::encode_effect(&effect));
        let answer = send(&node.routers.rest, "POST", &path, body).await;
        assert_eq!(answer.status.as_u16(), status, "{bytes}");
    }
    assert_eq!(
        node.send("GET", "/key/big").await.body.len(),
        VALUE_BYTES_MAX
    );
}
