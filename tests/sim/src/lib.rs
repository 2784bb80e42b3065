//! What the model and the simulation of the slot protocol share: the rule by which they judge the product.

pub mod rule;
