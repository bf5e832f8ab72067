use super::{Daemon, DriverState, Facts, LegFacts, Outlook, State, Status, Walk, rfc3339};
use crate::control::settings::{CatchUp, Settings};
use crate::core::{
    Health, IoCounts, LegId, LegRecord, LegStatus as CoreLegStatus, Protocol, Record, Status as CoreStatus, Suspects,
    Time, WalkKind as CoreWalkKind, WalkStatus,
};

/// A device of two legs, `a` primary, with the secondary in the given health.
fn core(secondary: Option<(Health, bool)>) -> CoreStatus {
    let record = |health, attached| LegRecord {
        health,
        consistent_at: 7,
        attached,
        doubted: false,
    };
    let status = |health, attached| CoreLegStatus {
        health,
        attached,
        consistent_at: 7,
        lag_bytes: 0,
        lacking_since: None,
    };
    CoreStatus {
        record: Record {
            number: 3,
            era: 2,
            primary: LegId::A,
            legs: [
                Some(record(Health::InSync, true)),
                secondary.map(|(health, attached)| record(health, attached)),
            ],
            protocol: Protocol::Flush,
            generation_ceiling: 100,
            tracked: false,
            suspect: false,
            clean: false,
        },
        legs: [
            Some(status(Health::InSync, true)),
            secondary.map(|(health, attached)| status(health, attached)),
        ],
        source_generation: 9,
        writes_mirrored: 8,
        flush_request: 7,
        writes_flushed: 6,
        dirty_bytes: 0,
        pool_used: 0,
        resync: WalkStatus::default(),
        check: WalkStatus::default(),
        rechecking: false,
        unsigned_bytes: 0,
        hot_skipped: 0,
        pool_bytes: 0,
        counting: false,
        primary: LegId::A,
        protocol: Protocol::Flush,
        comes_by_itself: true,
        paused: false,
        rate: 0,
        tracked: false,
        record_failing: false,
        io: IoCounts::default(),
    }
}

fn facts() -> Facts {
    let leg = |path: &str| {
        let json = serde_json::json!({
            "kind":"block","size":4096,"block":512,"major":8,"minor":0,"inode":0,"partition":0,"serial":"","wwid":"",
            "partition_uuid":"","stack_uuid":"","path":path,"canonical":path
        });
        Some(LegFacts {
            identity: serde_json::from_value(json).unwrap(),
            awaited: false,
            since: None,
        })
    };
    Facts {
        name: "vm1".into(),
        uuid: "u".into(),
        device: Some("/dev/ublkb0".into()),
        size_bytes: 1 << 30,
        logical_block_size: 512,
        legs: [leg("/dev/sda"), leg("/dev/sdb")],
        daemon: Daemon {
            pid: 1,
            version: "0".into(),
            started: rfc3339(0),
        },
        driver_state: DriverState::Live,
        metadata_writes: 0,
        settings: Settings::from(&crate::table::Settings::default()),
        unix: 0,
    }
}

fn status(secondary: Option<(Health, bool)>) -> Status {
    Status::of_core(&facts(), &core(secondary), &Suspects::none(), Time(0))
}

#[test]
fn the_time_of_lag_is_that_of_the_oldest_thing_that_is_missing() {
    let lag = |change: &dyn Fn(&mut CoreStatus, &mut Facts)| {
        let (mut core, mut facts) = (core(Some((Health::InSync, true))), facts());
        change(&mut core, &mut facts);
        let now = Time(5_000_000_000);
        Status::of_core(&facts, &core, &Suspects::none(), now).legs[1].lag_ms
    };
    assert_eq!(lag(&|_, _| ()), Some(0));
    let pending = |core: &mut CoreStatus| core.legs[1].as_mut().unwrap().lacking_since = Some(Time(2_000_000_000));
    assert_eq!(lag(&|core, _| pending(core)), Some(3000));
    let behind = |core: &mut CoreStatus, dirty| {
        core.legs[1].as_mut().unwrap().health = Health::Behind;
        core.dirty_bytes = dirty;
    };
    // Nothing was written since.
    assert_eq!(lag(&|core, _| behind(core, 0)), Some(0));
    assert_eq!(lag(&|core, _| behind(core, 4096)), None);
    let since = |facts: &mut Facts| {
        facts.unix = 1000;
        facts.legs[1].as_mut().unwrap().since = Some(940);
    };
    assert_eq!(
        lag(&|core, facts| {
            behind(core, 4096);
            since(facts);
        }),
        Some(60_000)
    );
}

#[test]
fn one_word_says_what_the_secondary_is_worth() {
    let expected = [
        (None, State::Single),
        (Some((Health::InSync, true)), State::Mirrored),
        (Some((Health::Syncing, true)), State::Syncing),
        (Some((Health::Behind, true)), State::Degraded),
        (Some((Health::Failed, true)), State::Degraded),
        (Some((Health::Absent, true)), State::Degraded),
        (Some((Health::Behind, false)), State::Single),
    ];
    for (secondary, state) in expected {
        assert_eq!(status(secondary).state, state, "{secondary:?}");
    }
    let mut failed = core(Some((Health::InSync, true)));
    failed.legs[0].as_mut().unwrap().health = Health::Failed;
    assert_eq!(
        Status::of_core(&facts(), &failed, &Suspects::none(), Time(0)).state,
        State::Failed
    );
}

#[test]
fn a_wait_ends_as_soon_as_in_sync_cannot_come_by_itself() {
    let never = |status: &Status| matches!(status.outlook(), Outlook::Never { .. });
    assert_eq!(status(Some((Health::InSync, true))).outlook(), Outlook::InSync);
    assert_eq!(status(Some((Health::Syncing, true))).outlook(), Outlook::Coming);
    assert_eq!(status(Some((Health::Behind, true))).outlook(), Outlook::Coming);
    assert!(never(&status(None)));
    assert!(never(&status(Some((Health::Behind, false)))));
    assert!(never(&status(Some((Health::Failed, true)))));
    assert!(never(&status(Some((Health::Absent, true)))));

    let mut manual = status(Some((Health::Behind, true)));
    manual.settings.as_mut().unwrap().catch_up = CatchUp::Manual;
    assert_eq!(manual.outlook(), Outlook::Coming, "a catch-up that runs goes on");
    manual.comes_by_itself = false;
    assert!(never(&manual));
    let mut stuck = status(Some((Health::Syncing, true)));
    stuck.comes_by_itself = false;
    assert!(never(&stuck));
    let mut paused = status(Some((Health::Syncing, true)));
    paused.paused = true;
    assert!(never(&paused));
    let mut awaited = status(Some((Health::Absent, true)));
    awaited.legs[1].awaited = true;
    assert_eq!(awaited.outlook(), Outlook::Coming);
}

#[test]
fn legs_that_may_differ_are_not_mirrored_and_are_waited_for() {
    let mut dirty = core(Some((Health::InSync, true)));
    dirty.dirty_bytes = 4096;
    let dirty = Status::of_core(&facts(), &dirty, &Suspects::none(), Time(0));
    assert_eq!(dirty.state, State::Syncing);
    assert_eq!(dirty.outlook(), Outlook::Coming);
    let stuck = Status {
        comes_by_itself: false,
        ..dirty.clone()
    };
    assert!(matches!(stuck.outlook(), Outlook::Never { .. }));
    let paused = Status { paused: true, ..dirty };
    assert!(matches!(paused.outlook(), Outlook::Never { .. }));

    let mut suspect = core(Some((Health::InSync, true)));
    suspect.rechecking = true;
    let suspect = Status::of_core(&facts(), &suspect, &Suspects::none(), Time(0));
    assert_eq!((suspect.state, suspect.outlook()), (State::Syncing, Outlook::Coming));
    let paused = Status {
        paused: true,
        ..suspect
    };
    assert!(matches!(paused.outlook(), Outlook::Never { .. }));

    let mut lagging = core(Some((Health::InSync, true)));
    lagging.legs[1].as_mut().unwrap().lag_bytes = 4096;
    let lagging = Status::of_core(&facts(), &lagging, &Suspects::none(), Time(0));
    assert_eq!(
        lagging.state,
        State::Mirrored,
        "writes on their way are the steady state"
    );
    assert_eq!(lagging.outlook(), Outlook::InSync);
}

#[test]
fn the_documented_fields_are_all_there() {
    let mut core = core(Some((Health::Syncing, true)));
    core.resync = WalkStatus {
        kind: CoreWalkKind::Full,
        running: true,
        bytes_total: 10,
        ..WalkStatus::default()
    };
    let json = serde_json::to_value(Status::of_core(&facts(), &core, &Suspects::none(), Time(5))).unwrap();
    let documented = serde_json::json!({
        "name":"vm1","uuid":"…","device":"/dev/ublkb0","size_bytes":1073741824,"protocol":"flush","era":1,
        "state":"single",
        "legs":[{"id":"a","path":"/dev/sda","role":"primary","health":"in-sync","consistent":true,
                 "consistent_at_generation":0,"lag_bytes":0,"suspect":[]}],
        "counters":{"source_generation":0,"writes_mirrored":0,"flush_request":0,"writes_flushed":0},
        "dirty_bytes":0,
        "resync":{"kind":"full","bytes_total":0,"bytes_done":0,"bytes_read":0,"bytes_written":0,
                  "bytes_matched":0,"rate_bytes_per_s":0,"eta_s":0},
        "last_resync":null,
        "daemon":{"pid":0,"version":"","started":"…"},"driver_state":"live",
        "io":{"reads":0,"writes":0,"flushes":0,"discards":0,"read_bytes":0,"written_bytes":0,"errors":0,
              "metadata_writes":0}
    });
    assert_fields(&documented, &json, "");
}

fn assert_fields(documented: &serde_json::Value, json: &serde_json::Value, at: &str) {
    match documented {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                let found = json.get(name).unwrap_or_else(|| panic!("{at}.{name} is missing"));
                assert_fields(value, found, &format!("{at}.{name}"));
            }
        }
        serde_json::Value::Array(items) => assert_fields(&items.first().cloned().unwrap_or_default(), &json[0], at),
        _ => {}
    }
}

#[test]
fn an_older_status_without_the_added_fields_still_parses() {
    let mut json = serde_json::to_value(status(None)).unwrap();
    let added = [
        "last_resync",
        "last_check",
        "record_number",
        "record_failing",
        "pool_used_bytes",
        "paused",
    ];
    for field in added
        .into_iter()
        .chain(["rate_limit_bytes_per_s", "settings", "logical_block_size"])
    {
        json.as_object_mut().unwrap().remove(field);
    }
    assert!(serde_json::from_value::<Status>(json).is_ok());
}

#[test]
fn rates_and_etas_are_averages() {
    let walk = WalkStatus {
        kind: CoreWalkKind::Full,
        running: true,
        bytes_total: 100,
        bytes_done: 20,
        began: Time(1_000_000_000),
        ..WalkStatus::default()
    };
    let figures = Walk::of_core(&walk, Time(3_000_000_000)).unwrap();
    assert_eq!(
        (figures.rate_bytes_per_s, figures.eta_s, figures.elapsed_s),
        (10, Some(8), 2)
    );
    let walk = WalkStatus { bytes_done: 0, ..walk };
    assert_eq!(Walk::of_core(&walk, Time(3_000_000_000)).unwrap().eta_s, None);
    assert_eq!(Walk::of_core(&WalkStatus::default(), Time(0)), None);
}
