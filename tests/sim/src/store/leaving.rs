//! What the schema has of slots, and its removal.

use std::collections::BTreeMap;

use kvcluster_crds::{Incarnation, Offset, SlotId};
use kvcluster_node::effect::SlotPosition;
use kvcluster_node::store::StoreError;

use super::server::Connection;

impl Connection {
    /// The slots that have a row, and where they stand.
    pub(super) async fn stored(&self) -> Result<Vec<(SlotId, Offset)>, StoreError> {
        self.statement().await?;
        let server = self.schema.lock();
        let slots = server.now().slots.iter();
        let place = |at: &SlotPosition| {
            if at.needs_snapshot() {
                Offset(0)
            } else {
                at.next_offset
            }
        };
        Ok(slots.map(|(slot, at)| (*slot, place(at))).collect())
    }

    /// Bytes of keys and values.
    pub(super) async fn sizes(&self) -> Result<Vec<(SlotId, u64)>, StoreError> {
        self.statement().await?;
        let server = self.schema.lock();
        let mut sizes = BTreeMap::new();
        for ((slot, key), row) in &server.now().rows {
            *sizes.entry(*slot).or_default() += (key.len() + row.value.len()) as u64;
        }
        Ok(sizes.into_iter().collect())
    }

    /// Everything of a slot goes, for good.
    pub(super) async fn remove(
        &self,
        incarnation: Incarnation,
        slot: SlotId,
    ) -> Result<(), StoreError> {
        self.statement().await?;
        let mut server = self.schema.lock();
        server.owned(incarnation)?;
        server.refuse_writes()?;
        let mut tables = server.now().clone();
        tables.slots.remove(&slot);
        tables.rows.retain(|(at, _), _| *at != slot);
        tables.dedup.retain(|(at, _, _), _| *at != slot);
        tables.restore.remove(&slot);
        server.commit(tables, true);
        Ok(())
    }
}
