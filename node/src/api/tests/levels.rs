//! Reads that need not be linearizable, and tokens.

use kvcluster_crds::Offset;

use super::*;

async fn get(node: &Node, headers: &[(&'static str, &str)]) -> Answer {
    let mut request = Request::get("/key/a");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).expect("a request");
    answer_of(
        node.routers
            .rest
            .clone()
            .oneshot(request)
            .await
            .expect("infallible"),
    )
    .await
}

fn token_of(answer: &Answer) -> String {
    let token = answer.headers.get("kvcluster-token").expect("a token");
    token.to_str().expect("text").to_owned()
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_replicas_answer_who_asks_for_less() {
    let node = Node::new();
    let written = node.send("PUT", "/key/a?value=1").await;
    let token = token_of(&written);
    node.slots.move_all(&Place::Nobody);
    let any = get(&node, &[("kvcluster-consistency", "any")]).await;
    assert_eq!(any.text(), (200, "1"));
    assert_eq!(token_of(&any), token, "the read saw the write");
    assert_eq!(
        get(&node, &[("kvcluster-token", &token)]).await.text(),
        (200, "1")
    );
    let strict = get(&node, &[]).await;
    assert_eq!(strict.problem(), problem(503, "no_leader", "none"));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_has_not_come_so_far_leaves_it_to_the_leader() {
    let node = Node::new();
    let written = node.send("PUT", "/key/a?value=1").await;
    let (place, offset) = {
        let token = token_of(&written);
        let (place, offset) = token.rsplit_once(':').expect("an offset");
        (place.to_owned(), offset.parse::<i64>().expect("a number"))
    };
    let ahead = format!("{place}:{}", offset + 1);
    let with_token = [("kvcluster-token", ahead.as_str())];
    let by_leader = node.slots.read_count.load(Ordering::Relaxed);
    assert_eq!(get(&node, &with_token).await.text(), (200, "1"));
    assert_eq!(node.slots.read_count.load(Ordering::Relaxed), by_leader + 1);
    node.slots.move_all(&Place::Nobody);
    let refused = get(&node, &with_token).await;
    assert_eq!(refused.problem(), problem(503, "no_leader", "none"));
}

#[tokio::test]
async fn a_node_without_a_replica_asks_the_leader() {
    let node = Node::new();
    node.send("PUT", "/key/a?value=1").await;
    node.slots.has_replica.store(false, Ordering::Relaxed);
    let any = get(&node, &[("kvcluster-consistency", "any")]).await;
    assert_eq!(any.text(), (200, "1"));
    assert_eq!(node.slots.read_count.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_replica_answers_bounded_reads_while_it_is_sure_to_be_fresh() {
    let node = Node::new();
    node.send("PUT", "/key/a?value=1").await;
    let within = async |staleness| {
        let bounded = ("kvcluster-consistency", "bounded");
        get(&node, &[bounded, ("kvcluster-max-staleness-ms", staleness)]).await
    };
    let asked = || node.slots.read_count.load(Ordering::Relaxed);
    let say = |age_ms, next| {
        *node.slots.fresh.lock().expect("free") = Some((age_ms, Offset(next)));
    };
    assert_eq!(within("500").await.text(), (200, "1"));
    assert_eq!(asked(), 1, "nobody has said how fresh the replica is");
    say(500, 1);
    assert_eq!(within("500").await.text(), (200, "1"));
    assert_eq!(asked(), 1, "the replica knows enough");
    assert_eq!(within("499").await.text(), (200, "1"));
    assert_eq!(asked(), 2, "that was too long ago");
    say(0, 2);
    assert_eq!(within("500").await.text(), (200, "1"));
    assert_eq!(asked(), 3, "the replica lacks a record");
    say(0, 0);
    node.slots.move_all(&Place::Nobody);
    let read = within("500").await;
    assert_eq!(
        (read.text(), token_of(&read).is_empty()),
        ((200, "1"), false)
    );
    node.slots.has_replica.store(false, Ordering::Relaxed);
    let refused = within("500").await;
    assert_eq!(refused.problem(), problem(503, "no_leader", "none"));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_name() {
    let node = Node::new();
    for (name, value) in [
        ("kvcluster-consistency", "eventual"),
        ("kvcluster-consistency", "token"),
        ("kvcluster-token", "1:2"),
    ] {
        let answer = get(&node, &[(name, value)]).await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.problem(), problem(400, "bad_request", "none"));
        assert!(text.contains(name), "{text}");
    }
}
