use super::rig::{Rig, WRITE};
use crate::core::leg::LegId;
use crate::core::record::Protocol;
use crate::core::time::{Span, Time};

#[test]
fn the_lag_is_as_old_as_the_oldest_write_that_the_secondary_lacks() {
    let mut rig = Rig::in_sync(Protocol::Flush);
    let lacking = |rig: &Rig| rig.mirror.status().legs[1].expect("it has two").lacking_since;
    let arrive = |rig: &mut Rig, grain| -> Time {
        rig.pass_time(Span::from_millis(10));
        rig.write(grain as u16, grain);
        rig.now
    };
    let first = arrive(&mut rig, 1);
    assert_eq!(lacking(&rig), None, "the primary has not got it either");
    rig.end(LegId::A, WRITE, Ok(()));
    let second = arrive(&mut rig, 2);
    rig.end(LegId::A, WRITE, Ok(()));
    assert_eq!(lacking(&rig), Some(first));
    rig.end(LegId::B, WRITE, Ok(()));
    assert_eq!(lacking(&rig), Some(second));
    rig.end(LegId::B, WRITE, Ok(()));
    assert_eq!(lacking(&rig), None);
    assert_eq!(rig.mirror.status().legs[0].expect("it has two").lacking_since, None);
}
