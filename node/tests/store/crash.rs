//! A server that is killed with commits in its memory: they are lost there, and nowhere else.

use kvcluster_crds::SlotId;
use kvcluster_node::store::{Store, StoreError};

use crate::fixture::{Fixture, Model, eventually, get};
use crate::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn commits_lost_in_a_crash_are_flushed_again() {
    let mut server = Server::start().await;
    let fixture = Fixture::on(server.url()).await;
    let store = fixture.store(1, &[0, 1]).await;
    let mut model = Model::new();
    model.apply(&*store, 0, &[("cold", Some("1")), ("hot", Some("1"))]);
    model.apply(&*store, 1, &[("quiet", Some("1"))]);
    store.flush_all().await.expect("flushes");
    let mut lost = 0;
    for round in 0..5 {
        let value = format!("round {round}");
        model.apply(
            &*store,
            0,
            &[("hot", Some(&value)), (&format!("k{round}"), Some(&value))],
        );
        model.apply(&*store, 1, &[(&format!("k{round}"), Some(&value))]);
        let next = [0, 1].map(|slot| model.next_offset(slot));
        eventually("flushed", async || {
            [0, 1].map(|slot| store.progress(SlotId(slot)).flushed) == next
        })
        .await;
        server.kill();
        model.apply(&*store, 0, &[("while away", Some(&value))]);
        assert_eq!(get(&*store, 0, "hot").await, Ok(Some(value.clone())));
        eventually("the store sees it", async || !store.connected()).await;
        let cold = get(&*store, 0, "never read").await;
        assert!(matches!(cold, Err(StoreError::Unavailable(_))), "{cold:?}");
        server.up().await;
        lost += i32::from(fixture.stored_offset(1).await < next[1]);
        let next = [0, 1].map(|slot| model.next_offset(slot));
        eventually("all is flushed again", async || {
            [
                fixture.stored_offset(0).await,
                fixture.stored_offset(1).await,
            ] == next
        })
        .await;
        assert_eq!(fixture.rows(0).await, model.slot(0), "round {round}");
        assert_eq!(fixture.rows(1).await, model.slot(1), "round {round}");
    }
    assert!(
        lost > 0,
        "no crash took a commit back: the test shows nothing"
    );
    store.flush_all().await.expect("flushes");
    assert_eq!(store.unflushed_bytes(), 0);
    // What was reported as durable is there after one more crash, without the store.
    drop(store);
    server.kill();
    server.up().await;
    assert_eq!(fixture.rows(0).await, model.slot(0));
    assert_eq!(fixture.rows(1).await, model.slot(1));
}
