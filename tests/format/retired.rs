//! What was saved of a retired disk, pinned.

use super::example;
use twinblk::core::LegId;
use twinblk::table::Retired;
use twinblk::table::retired::Saved;

const RETIRED_V1_HASH: &str = "ca1eae921e9e469e09cf1055f06d9d4c408befbfed6cea7e1470184fab2650b3";

fn retired() -> Retired {
    let identity = example().legs[0].clone().expect("the example has two legs");
    let saved = |start, len, byte| Saved {
        start,
        content: vec![byte; len],
    };
    let last = identity.size - 4096;
    Retired {
        uuid: *b"0123456789abcdef",
        leg: LegId::B,
        wiped: false,
        detached: None,
        identity,
        saved: vec![saved(0, 4096, 1), saved(0x0010_0000, 512, 2), saved(last, 4096, 3)],
    }
}

#[test]
fn a_disk_retired_by_any_release_can_be_put_back() {
    let bytes = retired().encode();
    assert_eq!(blake3::hash(&bytes).to_string(), RETIRED_V1_HASH);
    assert_eq!(Retired::decode(&bytes), Ok(retired()));
}
