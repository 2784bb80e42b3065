//! Guards of the store are taken away, and its tests must notice.

use std::time::Duration;

use futures::future::BoxFuture;
use kvcluster_node::seeded::{self, Bug};

use crate::fence;

/// A test of the store.
type Check = fn() -> BoxFuture<'static, ()>;

/// A test that waits longer than it ever does has noticed too.
const LONGEST: Duration = Duration::from_secs(5);

/// One test for all: the switch is the whole process's.
#[tokio::test(flavor = "multi_thread")]
async fn seeded_bugs_of_the_store_are_noticed() {
    let tests: [(Bug, Check); 2] = [
        (
            Bug::OwnerUnchecked,
            || Box::pin(fence::newer_fences_older()),
        ),
        (Bug::OffsetUnchecked, || {
            Box::pin(fence::moved_offset_ends_store())
        }),
    ];
    for (bug, test) in tests {
        seeded::set(Some(bug));
        let ended = tokio::time::timeout(LONGEST, tokio::spawn(test())).await;
        seeded::set(None);
        let noticed = match ended {
            Ok(Ok(())) => panic!("{bug:?} is not noticed"),
            Ok(Err(failed)) => failed.to_string(),
            Err(_) => format!("it does not end in {LONGEST:?}"),
        };
        println!("{bug:?}: {noticed}");
        // Without it the same test passes, here and now.
        test().await;
    }
}
