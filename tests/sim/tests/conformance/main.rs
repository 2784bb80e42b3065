//! One set of cases that say what the log and the store promise. Each runs on the simulated one and on Kafka or PostgreSQL,
//! and must see the same: the simulation of whole nodes is worth what these say of it.
//!
//! `KVCLUSTER_TEST_KAFKA` and `KVCLUSTER_TEST_POSTGRES_URL` name the services, of one broker and of a server that schemas
//! may be made in. Topics and schemas are the run's own and are removed.

mod broker;
mod database;
mod flaws;
mod log_cases;
mod proxy;
mod store_cases;
mod table;

/// Fewer cases than this would not say enough.
const CASES_MIN: usize = 50;

#[test]
fn there_are_enough_cases_with_names_of_their_own() {
    let mut names: Vec<&str> = log_cases::all().iter().map(|case| case.name).collect();
    names.extend(store_cases::all().iter().map(|case| case.name));
    println!("{} cases", names.len());
    assert!(names.len() >= CASES_MIN, "only {} cases", names.len());
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn the_log_keeps_its_promises_in_memory_and_on_kafka() {
    table::run_log_cases();
}

#[test]
fn the_store_keeps_its_promises_in_memory_and_on_postgresql() {
    table::run_store_cases();
}

#[test]
fn every_case_of_the_log_can_fail() {
    flaws::check_log_cases();
}

#[test]
fn every_case_of_the_store_can_fail() {
    flaws::check_store_cases();
}
