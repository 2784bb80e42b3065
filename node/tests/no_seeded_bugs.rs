//! The program that runs has none of the mistakes that the checks are tested with.

#[test]
fn the_program_cannot_be_made_to_lose_data() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_kvcluster-node")).expect("the program");
    let mark = kvcluster_node::seeded::MARK.as_bytes();
    // That the mark would be found is checked where the mistakes are made.
    assert!(!program.windows(mark.len()).any(|bytes| bytes == mark));
}
