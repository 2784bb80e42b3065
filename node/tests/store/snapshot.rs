//! Slots that move from schema to schema as snapshots.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use kvcluster_crds::{Offset, SlotId};
use kvcluster_node::effect::SlotPosition;
use kvcluster_node::store::postgres::PostgresStore;
use kvcluster_node::store::{ExportError, Missing, RestoreError, Snapshots, Store, StoreError};

use crate::fixture::{Fixture, Model, eventually, get, position, scan};

const SLOT: SlotId = SlotId(3);
/// Longest time in which thirty megabytes are restored, where nothing holds that back; below PostgreSQL's limit for locks.
const RESTORE_LIMIT: Duration = Duration::from_secs(2);

type Pieces = BoxStream<'static, Result<Bytes, StoreError>>;

/// A store with some rows in two slots, all flushed; values of so many bytes.
async fn filled(fixture: &Fixture, keys: usize, value_bytes: usize) -> (Arc<PostgresStore>, Model) {
    let store = fixture.store(1, &[3, 4]).await;
    let mut model = Model::new();
    for number in 0..keys {
        let value = format!("{number:04}").repeat(value_bytes / 4);
        model.apply(store.as_ref(), 3, &[(&key(number), Some(&value))]);
        model.apply(
            store.as_ref(),
            4,
            &[(&key(number), Some("of another slot"))],
        );
    }
    model.apply(store.as_ref(), 3, &[(&key(0), None)]);
    model.apply_request(store.as_ref(), 3, "request-of-3");
    model.apply_request(store.as_ref(), 4, "request-of-4");
    store.flush_all().await.expect("flushes");
    (store, model)
}

fn key(number: usize) -> String {
    format!("key-{number:05}")
}

async fn export(store: &PostgresStore, after: Bytes, least: i64) -> Result<Pieces, ExportError> {
    store.export(SLOT, after, Offset(least)).await
}

/// The stream as it comes from another node.
fn received(pieces: Pieces) -> BoxStream<'static, Result<Bytes, String>> {
    pieces.map_err(|error| error.to_string()).boxed()
}

/// Gives so many pieces and then breaks off.
fn broken_after(count: usize, pieces: Pieces) -> BoxStream<'static, Result<Bytes, String>> {
    let cut = stream::once(async { Err("the connection broke".to_owned()) });
    received(pieces).take(count).chain(cut).boxed()
}

fn all(least: i64) -> Missing {
    Missing {
        after: Bytes::new(),
        least: Offset(least),
    }
}

async fn loaded(store: &PostgresStore) -> SlotPosition {
    let loaded = store.load(&[SLOT]).await.expect("loads");
    loaded[0].1.position.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_arrives_with_its_rows_and_its_position() {
    let (from, to) = (Fixture::new().await, Fixture::new().await);
    let (source, model) = filled(&from, 50, 100).await;
    let target = to.store(2, &[3, 4]).await;
    // What was there before goes, also what is only in memory.
    let mut old = Model::new();
    old.apply(target.as_ref(), 3, &[("old", Some("flushed"))]);
    old.apply_request(target.as_ref(), 3, "old-request");
    target.flush_all().await.expect("flushes");
    old.apply(target.as_ref(), 3, &[("older", Some("in memory"))]);
    let pieces = export(&source, Bytes::new(), 0).await.expect("exports");
    target
        .restore(SLOT, Offset(0), received(pieces))
        .await
        .expect("restores");
    let refused = get(target.as_ref(), 3, "old").await;
    assert!(refused.is_err(), "not loaded yet: {refused:?}");
    let at = loaded(&target).await;
    assert_eq!(at, position(model.next_offset(3)));
    assert_eq!(to.rows(3).await, model.slot(3));
    assert_eq!(to.remembered(3).await, [model.next_offset(3) - 1]);
    assert_eq!(to.remembered(3).await, from.remembered(3).await);
    assert!(to.remembered(4).await.is_empty());
    assert_eq!(scan(target.as_ref(), 3).await, Ok(model.slot(3)));
    assert_eq!(get(target.as_ref(), 3, "old").await, Ok(None));
    assert!(to.rows(4).await.is_empty(), "the other slot is not touched");
    assert_eq!(target.progress(SLOT).durable, model.next_offset(3));
    from.drop_schema().await;
    to.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_slot_arrives_too() {
    let (from, to) = (Fixture::new().await, Fixture::new().await);
    let source = from.store(1, &[3]).await;
    let target = to.store(2, &[3]).await;
    let pieces = export(&source, Bytes::new(), 0).await.expect("exports");
    let restored = target.restore(SLOT, Offset(0), received(pieces)).await;
    assert_eq!(restored, Ok(()));
    assert_eq!(loaded(&target).await, SlotPosition::start());
    from.drop_schema().await;
    to.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_is_resumed_behind_the_last_key_and_whole_only_at_the_newer_cut() {
    let (from, to) = (Fixture::new().await, Fixture::new().await);
    // Several transactions of the receiver.
    let (source, mut model) = filled(&from, 60, 500_000).await;
    let first_cut = model.next_offset(3);
    let target = to.store(2, &[3]).await;
    let pieces = export(&source, Bytes::new(), 0).await.expect("exports");
    let broken = target
        .restore(SLOT, Offset(0), broken_after(50, pieces))
        .await;
    assert!(matches!(broken, Err(RestoreError::Broken(_))), "{broken:?}");
    let missing = target.missing(SLOT, Offset(0)).await.expect("answers");
    assert!(!missing.after.is_empty(), "something was kept");
    assert_eq!(missing.least, Offset(first_cut), "no older cut will do");
    assert!(loaded(&target).await.needs_snapshot());
    // Meanwhile the source goes on: before and behind the place of the break.
    model.apply(
        source.as_ref(),
        3,
        &[(&key(1), Some("newer")), (&key(59), Some("newer"))],
    );
    source.flush_all().await.expect("flushes");
    let second_cut = model.next_offset(3);
    // Another process of the node goes on with it.
    let target = to.closed_store(3);
    target.open().await.expect("opens");
    assert!(loaded(&target).await.needs_snapshot());
    assert_eq!(target.missing(SLOT, Offset(0)).await, Ok(missing.clone()));
    let pieces = export(&source, missing.after, missing.least.0).await;
    let pieces = pieces.expect("exports");
    let restored = target.restore(SLOT, Offset(0), received(pieces)).await;
    assert_eq!(restored, Ok(()));
    let at = loaded(&target).await;
    assert_eq!(
        at.next_offset,
        Offset(first_cut),
        "the log goes on from the first cut"
    );
    assert_eq!(at.whole_at, Some(Offset(second_cut)));
    let rows = to.rows(3).await;
    assert_eq!(rows.len(), model.slot(3).len());
    let value = |number: usize| rows[key(number).as_bytes()].0.clone();
    assert_ne!(value(1), "newer", "of the first cut");
    assert_eq!(value(59), "newer", "of the second");
    assert_eq!(target.missing(SLOT, Offset(0)).await, Ok(all(0)));
    from.drop_schema().await;
    to.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_an_older_cut_is_refused() {
    let (from, older, to) = (
        Fixture::new().await,
        Fixture::new().await,
        Fixture::new().await,
    );
    let (source, model) = filled(&from, 60, 500_000).await;
    let (behind, _) = filled(&older, 30, 100).await;
    let target = to.store(2, &[3]).await;
    let pieces = export(&source, Bytes::new(), 0).await.expect("exports");
    let broken = target
        .restore(SLOT, Offset(0), broken_after(50, pieces))
        .await;
    assert!(broken.is_err());
    // A replica that has not come as far yet: its rows lack what the log will not be read for.
    let missing = target.missing(SLOT, Offset(0)).await.expect("answers");
    let pieces = export(&behind, missing.after, 0).await.expect("exports");
    let refused = target.restore(SLOT, Offset(0), received(pieces)).await;
    let reason = format!("and {} is needed", model.next_offset(3));
    assert!(
        matches!(&refused, Err(RestoreError::Broken(text)) if text.contains(&reason)),
        "{refused:?}"
    );
    for fixture in [from, older, to] {
        fixture.drop_schema().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_does_not_go_on_from_is_begun_anew() {
    let (from, to) = (Fixture::new().await, Fixture::new().await);
    let (source, mut model) = filled(&from, 60, 500_000).await;
    let first_cut = model.next_offset(3);
    let target = to.store(2, &[3]).await;
    let pieces = export(&source, Bytes::new(), 0).await.expect("exports");
    let broken = target
        .restore(SLOT, Offset(0), broken_after(50, pieces))
        .await;
    assert!(broken.is_err());
    model.apply(source.as_ref(), 3, &[(&key(1), None)]);
    source.flush_all().await.expect("flushes");
    let least = first_cut + 1;
    assert_eq!(target.missing(SLOT, Offset(least)).await, Ok(all(least)));
    let pieces = export(&source, Bytes::new(), least).await.expect("exports");
    let restored = target.restore(SLOT, Offset(least), received(pieces)).await;
    assert_eq!(restored, Ok(()));
    assert_eq!(loaded(&target).await.whole_at, None);
    assert_eq!(to.rows(3).await, model.slot(3));
    from.drop_schema().await;
    to.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_before_its_rows_leaves_what_was_there() {
    let (from, to) = (Fixture::new().await, Fixture::new().await);
    let (source, _) = filled(&from, 20, 100).await;
    let target = to.store(2, &[3]).await;
    let mut old = Model::new();
    old.apply(target.as_ref(), 3, &[("old", Some("stays"))]);
    target.flush_all().await.expect("flushes");
    let pieces = export(&source, Bytes::new(), 0).await.expect("exports");
    let broken = target
        .restore(SLOT, Offset(0), broken_after(1, pieces))
        .await;
    assert!(broken.is_err(), "only the head came");
    assert_eq!(to.stored_offset(3).await, 1);
    assert_eq!(
        get(target.as_ref(), 3, "old").await,
        Ok(Some("stays".to_owned()))
    );
    from.drop_schema().await;
    to.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_piece_is_refused() {
    let (from, to) = (Fixture::new().await, Fixture::new().await);
    let (source, _) = filled(&from, 20, 100).await;
    let target = to.store(2, &[3]).await;
    let pieces = export(&source, Bytes::new(), 0).await.expect("exports");
    let damaged = received(pieces).map(|piece| {
        let mut piece = piece?.to_vec();
        let last = piece.len() - 1;
        piece[last] ^= 1;
        Ok(Bytes::from(piece))
    });
    let refused = target.restore(SLOT, Offset(0), damaged.boxed()).await;
    assert!(
        matches!(&refused, Err(RestoreError::Source(text)) if text.contains("checksum")),
        "{refused:?}"
    );
    assert_eq!(
        get(target.as_ref(), 3, "any").await,
        Ok(None),
        "still loaded"
    );
    from.drop_schema().await;
    to.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_helps_is_given() {
    let (from, to) = (Fixture::new().await, Fixture::new().await);
    let (source, model) = filled(&from, 60, 500_000).await;
    let next = model.next_offset(3);
    assert!(export(&source, Bytes::new(), next).await.is_ok());
    let too_old = export(&source, Bytes::new(), next + 1).await.err();
    assert!(
        matches!(too_old, Some(ExportError::TooOld { .. })),
        "{too_old:?}"
    );
    let elsewhere = source
        .export(SlotId(9), Bytes::new(), Offset(0))
        .await
        .err();
    assert_eq!(elsewhere, Some(ExportError::NotHere { slot: SlotId(9) }));
    let target = to.store(2, &[3]).await;
    let pieces = export(&source, Bytes::new(), 0).await.expect("exports");
    let broken = target
        .restore(SLOT, Offset(0), broken_after(50, pieces))
        .await;
    assert!(broken.is_err());
    let half = export(&target, Bytes::new(), 0).await.err();
    assert_eq!(half, Some(ExportError::NotWhole { slot: SLOT }));
    from.drop_schema().await;
    to.drop_schema().await;
}

/// Flushes, and they alone, wait for a lock before they look at the slots.
const SLOW_FLUSHES: &str = "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
         IF current_query() LIKE 'UPDATE slot_state AS state%' THEN
             PERFORM pg_advisory_xact_lock_shared(hashtext(current_schema()));
         END IF;
         RETURN NULL;
     END $$;
     CREATE TRIGGER wait BEFORE UPDATE ON slot_state FOR EACH STATEMENT EXECUTE FUNCTION wait()";

/// A replica that has stored nothing expects offset 0, and a slot that is partly restored stands there too.
#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_is_under_way_does_not_take_the_mark_of_a_restore_away() {
    let (from, to) = (Fixture::new().await, Fixture::new().await);
    let (source, _) = filled(&from, 60, 500_000).await;
    let target = to.store(2, &[3]).await;
    to.execute(SLOW_FLUSHES).await;
    let mut lock = to.connect().await;
    let mut run = async |statement| {
        let done = sqlx::query(statement).execute(&mut lock).await;
        done.expect("takes or gives the lock");
    };
    run("SELECT pg_advisory_lock(hashtext(current_schema()))").await;
    let mut old = Model::new();
    old.apply(target.as_ref(), 3, &[("old", Some("of the old state"))]);
    eventually("a flush that waits", async || {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
             AND objid = (hashtext(current_schema())::bigint & 4294967295)::oid",
        )
        .fetch_one(&mut to.connect().await)
        .await
        .expect("looks at locks");
        waiting > 0
    })
    .await;
    let pieces = export(&source, Bytes::new(), 0).await.expect("exports");
    let restore = target.restore(SLOT, Offset(0), broken_after(50, pieces));
    tokio::pin!(restore);
    // It may not come to its end before the flush does.
    let early = tokio::time::timeout(RESTORE_LIMIT, &mut restore).await;
    run("SELECT pg_advisory_unlock_all()").await;
    let broken = match early {
        Ok(broken) => broken,
        Err(_) => restore.await,
    };
    assert!(matches!(broken, Err(RestoreError::Broken(_))), "{broken:?}");
    target.flush_all().await.expect("flushes nothing more");
    let next = to.closed_store(3);
    next.open().await.expect("opens");
    assert!(
        loaded(&next).await.needs_snapshot(),
        "rows of a part of a snapshot are the state of no offset"
    );
    assert!(!to.rows(3).await.contains_key(&b"old"[..]));
    from.drop_schema().await;
    to.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_lost_its_schema_restores_nothing() {
    let (from, to) = (Fixture::new().await, Fixture::new().await);
    let (source, _) = filled(&from, 20, 100).await;
    let old = to.store(2, &[3]).await;
    let _newer = to.store(3, &[3]).await;
    let pieces = export(&source, Bytes::new(), 0).await.expect("exports");
    let refused = old.restore(SLOT, Offset(0), received(pieces)).await;
    let fenced = Err(RestoreError::Store(StoreError::Fenced(to.schema.clone())));
    assert_eq!(refused, fenced);
    assert!(to.rows(3).await.is_empty());
    from.drop_schema().await;
    to.drop_schema().await;
}
