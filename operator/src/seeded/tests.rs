//! Each guard is taken away, and the test that is named for it must fail; given back, it must pass.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Bug, MARK, set};
use crate::controller::harness::{crash, others};
use crate::execute::kubernetes::tests as requests;
use crate::plan::tests::{create, delete, doubt, restart, scale, serving};

macro_rules! noticed_by {
    ($($bug:ident: $check:path,)*) => {
        /// A mistake, and the test that notices it.
        const CHECKS: &[(Bug, &str, fn())] = &[$((Bug::$bug, stringify!($check), || $check()),)*];

        /// Every mistake has its test.
        fn is_checked(bug: Bug) {
            match bug {
                $(Bug::$bug => {})*
            }
        }
    };
}

noticed_by! {
    UidUnchecked: requests::a_pod_is_deleted_by_its_uid_and_gone_is_fine,
    SweepsByNumber: scale::fewer_nodes_are_emptied_first,
    SecretsAtFirstOnly: scale::more_nodes_get_their_share,
    LoginUntested: create::a_password_that_no_longer_works_is_set_again,
    LeavesBeforeEmpty: crash::a_disturbed_scale_in_ends_the_same,
    ReleasesUnproven: doubt::a_leaving_node_keeps_its_replicas_until_others_are_believed_to_have_them,
    RestartsNobody: restart::one_node_at_a_time,
    DroppedFieldsStay: create::a_field_that_the_spec_drops_is_dropped_from_the_object,
    BrokenWait: crash::a_disturbed_repair_of_a_bad_image_ends_the_same,
    OrderAssumed: others::the_order_of_lists_does_not_matter,
    NamespaceUnchecked: others::another_namespace_is_neither_looked_at_nor_touched,
    WorksOnDeleted: delete::everything_of_ours_goes_in_order,
    FinalizerFirst: delete::with_kafka_away_it_waits_and_then_ends_clean,
    FinalizerNever: delete::after_the_time_it_ends_and_names_what_is_left,
    ReadyUnserved: serving::a_slot_without_a_leader,
    BudgetFollowsPods: others::the_disruption_budget_is_written_once,
    OwnerUnchecked: others::an_object_that_was_taken_from_us_is_told_of_and_left_alone,
    LostLogMadeAnew: doubt::a_log_that_is_gone_is_not_made_anew,
    DefaultsAreChanges: create::what_the_api_server_adds_is_no_difference,
    StatusOverwrites: requests::a_status_is_not_written_over_a_change,
    FinalizerMeansDelete: delete::retain_leaves_everything_and_does_not_wait,
    PreparedStays: doubt::what_was_prepared_for_nodes_that_are_called_off_is_removed,
}

/// What a test says when it fails.
fn failure(check: fn()) -> Option<String> {
    let failed = catch_unwind(AssertUnwindSafe(check)).err()?;
    let text = failed.downcast_ref::<String>().cloned();
    let text = text.or_else(|| Some((*failed.downcast_ref::<&str>()?).to_owned()));
    Some(text.unwrap_or_else(|| "it fails".to_owned()))
}

#[test]
fn seeded_bugs_of_the_operator_are_noticed() {
    let (mut missed, mut alarms) = (Vec::new(), Vec::new());
    for (bug, name, check) in CHECKS {
        is_checked(*bug);
        alarms.extend(failure(*check).map(|text| format!("{name}: {text}")));
        set(Some(*bug));
        let noticed = failure(*check);
        set(None);
        match noticed.as_deref().and_then(|text| text.lines().next()) {
            Some(text) => println!("{bug:?}: {name}: {text:.200}"),
            None => missed.push(bug),
        }
    }
    assert!(alarms.is_empty(), "without any mistake: {alarms:?}");
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

/// The check of the product's program looks for these bytes.
#[test]
fn seeded_bugs_leave_a_mark() {
    let own = std::env::current_exe().and_then(std::fs::read);
    let (own, mark) = (own.expect("this program"), MARK.as_bytes());
    assert!(own.windows(mark.len()).any(|bytes| bytes == mark));
}
