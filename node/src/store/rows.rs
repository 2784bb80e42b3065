//! Rows of PostgreSQL as the types of the store, each column checked.

use bytes::Bytes;
use kvcluster_crds::{Epoch, Incarnation, NodeId, Offset, SlotId};
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::effect::{SlotPosition, Versioned};
use crate::store::StoreError;
use crate::store::postgres::{schema_error, unavailable};

pub(super) fn slot_number(slot: SlotId) -> i32 {
    slot.partition()
}

/// The slot of a number that stands in a column `slot`.
pub(super) fn slot_id(number: i32) -> Result<SlotId, StoreError> {
    SlotId::from_partition(number)
        .ok_or_else(|| schema_error(format!("slot_state.slot is {number}")))
}

pub(super) fn versioned(
    row: &PgRow,
    value: usize,
    version: usize,
) -> Result<Versioned, StoreError> {
    let bytes: &[u8] = row.try_get(value).map_err(unavailable)?;
    let version: i64 = row.try_get(version).map_err(unavailable)?;
    Ok(Versioned {
        value: Bytes::copy_from_slice(bytes),
        version: Offset(version),
    })
}

pub(super) fn position(row: &PgRow) -> Result<(SlotId, SlotPosition), StoreError> {
    let number = |name: &str| row.try_get::<Option<i64>, _>(name).map_err(unavailable);
    let node = |name: &str| {
        number(name)?
            .map(|id| u32::try_from(id).map(NodeId))
            .transpose()
            .map_err(|_| schema_error(format!("slot_state.{name} is no node id")))
    };
    let required = |name: &str| {
        number(name)?.ok_or_else(|| schema_error(format!("slot_state.{name} is null")))
    };
    let slot = row.try_get::<i32, _>("slot").map_err(unavailable)?;
    let slot = slot_id(slot)?;
    let incarnation = number("leader_incarnation")?.map(|id| Incarnation(id.cast_unsigned()));
    let position = SlotPosition {
        next_offset: Offset(required("next_offset")?),
        checksum_before: number("checksum_before")?.map(i64::cast_unsigned),
        epoch: Epoch(required("epoch")?.cast_unsigned()),
        leader: node("leader_node")?.zip(incarnation),
        last_leader_offset: number("last_leader_offset")?.map(Offset),
        last_seq: required("last_seq")?.cast_unsigned(),
        released_to: node("released_to")?,
        lease_ms: u32::try_from(required("lease_ms")?)
            .map_err(|_| schema_error("slot_state.lease_ms is out of range".to_owned()))?,
        time_ms: required("time_ms")?.cast_unsigned(),
        whole_at: number("whole_at")?.map(Offset),
    };
    Ok((slot, position))
}
