//! The contract that the operator and the store nodes share: types and pure functions, no I/O.
//!
//! What stands here is read by both sides of a process boundary, so a change is a change of protocol: the custom resource,
//! the names derived from it, key → slot, the assignment that the operator publishes, the status that a node reports and
//! the environment that a node is started with.

pub mod assignment;
pub mod environment;
pub mod ids;
pub mod names;
pub mod node_status;
pub mod slot;
pub mod v1alpha1;

pub use assignment::{Assignment, AssignmentLog, NodeEntry, SlotAssignment};
pub use ids::{Epoch, Incarnation, LogId, NodeId, Offset, SlotId};
pub use node_status::{NodeStatus, SlotRole, SlotStatus};
