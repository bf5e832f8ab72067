//! What must hold, as functions of what the guest was told, what the disks hold, and which records a start might find.
//!
//! Verified here: acknowledged writes (visible on every leg that could turn out to be authoritative; in `sync` on both),
//! acknowledged barriers (durable on every leg that counts), the image that a cut leaves, equal legs at rest, and the
//! content a digest belongs to. Not here: order on a leg and use of buffers (`effects`), counters (`counters`), progress
//! (`world`). A disk's promise that a failed flush broke, and of which the guest was told, is not expected to be kept.

use crate::disk::Disk;
use crate::oracle::{Barrier, Oracle, sectors};
use crate::suspects::Places;
use crate::token::{Token, WriteId};
use twinblk::core::{Health, LegId, Protocol, Record};

pub type Check<T = ()> = Result<T, String>;

/// The leg that follows in sync according to `record`, if any.
fn in_sync_secondary(record: &Record) -> Option<usize> {
    let other = record.primary.other().index();
    record.legs[other]
        .filter(|leg| leg.health == Health::InSync && leg.attached)
        .map(|_| other)
}

/// Legs on which a barrier must be durable if `record` is what a start finds.
fn barrier_legs(record: &Record) -> impl Iterator<Item = usize> {
    let secondary = match record.protocol {
        Protocol::Async => None,
        Protocol::Sync | Protocol::Flush => in_sync_secondary(record),
    };
    std::iter::once(record.primary.index()).chain(secondary)
}

fn at_least(oracle: &Oracle, sector: usize, token: Token, floor: WriteId) -> bool {
    oracle.is_legal(sector, token) && oracle.shows(sector, token, floor) || has_rotted_since(token, floor)
}

/// Whether the sector has changed by itself since write `id` was there to be seen: nothing older can be.
fn has_rotted_since(token: Token, id: WriteId) -> bool {
    token.is_rotten() && token.rotted_at() >= id
}

/// The sector shows what write `floor` put there, or something newer, or has rotted since.
pub fn shows_at_least(oracle: &Oracle, sector: usize, token: Token, floor: WriteId) -> bool {
    at_least(oracle, sector, token, floor)
}

fn is_spared(spared: &[bool], sector: usize) -> bool {
    spared.get(sector).copied().unwrap_or(false)
}

/// A write is about to be acknowledged: whichever record a start finds, the authoritative leg shows it.
pub fn write_acknowledged<'a>(
    oracle: &Oracle,
    disks: &[Disk; 2],
    possible: impl Iterator<Item = &'a Record>,
    places: &Places,
    id: WriteId,
) -> Check {
    let write = oracle.write(id).ok_or("a write of an earlier life is acknowledged")?;
    for record in possible {
        let both = record.protocol == Protocol::Sync;
        let spared = places.surely(record);
        let secondary = in_sync_secondary(record).filter(|_| both);
        for leg in std::iter::once(record.primary.index()).chain(secondary) {
            for sector in sectors(write.range) {
                let shown = disks[leg].live()[sector];
                let spared = leg != record.primary.index() && is_spared(&spared, sector);
                if !spared && !at_least(oracle, sector, shown, id) {
                    return Err(format!(
                        "write {id} {:?} is acknowledged, but leg {} shows {shown:?} at sector {sector} ({record:?})",
                        write.range,
                        LegId::ALL[leg],
                    ));
                }
            }
        }
        if write.fua {
            for leg in barrier_legs(record) {
                for sector in sectors(write.range) {
                    let durable = disks[leg].durable()[sector];
                    let spared = leg != record.primary.index() && is_spared(&spared, sector);
                    if !spared && !disks[leg].is_forgiven(sector) && !at_least(oracle, sector, durable, id) {
                        return Err(format!(
                            "FUA write {id} is acknowledged, but {durable:?} is what leg {} would keep ({record:?})",
                            LegId::ALL[leg],
                        ));
                    }
                }
            }
        }
    }
    Ok(())
}

/// A FLUSH is about to be acknowledged that was submitted when the floor was `floor`.
pub fn flush_acknowledged<'a>(
    oracle: &Oracle,
    disks: &[Disk; 2],
    possible: impl Iterator<Item = &'a Record>,
    places: &Places,
    floor: &[WriteId],
) -> Check {
    for record in possible {
        let spared = places.surely(record);
        for leg in barrier_legs(record) {
            let spared = if leg == record.primary.index() {
                &[]
            } else {
                &spared[..]
            };
            holds(oracle, &disks[leg], disks[leg].durable(), floor, spared).map_err(|what| {
                format!(
                    "a flush is acknowledged, but of leg {} {what} ({record:?})",
                    LegId::ALL[leg]
                )
            })?;
        }
    }
    Ok(())
}

/// Every sector of `image` that is not spared is at least as new as `floor`.
fn holds(oracle: &Oracle, disk: &Disk, image: &[Token], floor: &[WriteId], spared: &[bool]) -> Check {
    for (sector, (token, floor)) in image.iter().zip(floor).enumerate() {
        let spared = is_spared(spared, sector) || disk.is_forgiven(sector);
        if !spared && !at_least(oracle, sector, *token, *floor) {
            return Err(format!(
                "sector {sector} holds {token:?}, at least write {floor} is due"
            ));
        }
    }
    Ok(())
}

/// What may be expected of the caches when a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The power fails: caches are lost.
    Cut,
    /// Only the daemon dies: what the disks show stays.
    Kill,
}

/// A life has ended, the disks show what is left, and a start finds `record`.
///
/// `replaced` says of a leg that somebody else wrote to it since it was detached: nothing is expected of it. `spared` are the
/// sectors that such a start takes for suspect: what the secondary may have missed of them is not expected.
pub fn image_after(
    oracle: &Oracle,
    disks: &[Disk; 2],
    record: &Record,
    end: End,
    replaced: [bool; 2],
    spared: &[bool],
) -> Check {
    let floor = match end {
        End::Cut => oracle.flushed(),
        End::Kill => oracle.floor(),
    };
    let primary = &disks[record.primary.index()];
    holds(oracle, primary, primary.live(), floor, &[])
        .map_err(|what| format!("after a {end:?}, of the primary {what}"))?;

    let other = record.primary.other().index();
    let Some(leg) = record.legs[other].filter(|_| !replaced[other]) else {
        return Ok(());
    };
    let image = disks[other].live();
    let secondary = |what: String| {
        format!(
            "after a {end:?}, of the {} secondary {what} ({record:?})",
            leg.health.word()
        )
    };
    match leg.health {
        Health::InSync => {
            for (sector, token) in image.iter().enumerate() {
                let spared = is_spared(spared, sector) || disks[other].is_forgiven(sector);
                if !spared && !token.is_rotten() && !oracle.is_legal(sector, *token) {
                    return Err(secondary(format!("sector {sector} holds {token:?}")));
                }
            }
            let flushed = match record.protocol {
                Protocol::Sync | Protocol::Flush => oracle.flushed(),
                Protocol::Async => &[],
            };
            holds(oracle, &disks[other], image, flushed, spared).map_err(secondary)?;
            if record.protocol == Protocol::Sync && end == End::Kill {
                // A flush that failed while the daemon died could not be recorded any more.
                let floor: Vec<WriteId> = (0..image.len())
                    .map(|sector| match disks[other].is_reverted(sector) {
                        true => oracle.flushed()[sector],
                        false => oracle.floor()[sector],
                    })
                    .collect();
                holds(oracle, &disks[other], image, &floor, spared).map_err(secondary)?;
            }
            epochs_hold(oracle, &disks[other], image, spared).map_err(secondary)
        }
        Health::Behind => {
            generations_hold(oracle, &disks[other], image, leg.consistent_at, spared).map_err(secondary)?;
            epochs_hold(oracle, &disks[other], image, spared).map_err(secondary)
        }
        Health::Syncing | Health::Failed | Health::Absent => Ok(()),
    }
}

/// The image is what one disk may hold after a power cut: if it shows a write submitted after a barrier was
/// acknowledged, it shows everything that barrier covered, or something newer.
fn epochs_hold(oracle: &Oracle, disk: &Disk, image: &[Token], spared: &[bool]) -> Check {
    let newest = image
        .iter()
        .filter_map(|token| oracle.write(token.id()).map(|write| (write.submitted, token.id())))
        .max();
    let Some((newest, newest_id)) = newest else {
        return Ok(());
    };
    let shows = |sector: usize, id: WriteId| {
        let excused = disk.is_forgiven(sector) || oracle.is_tainted(sector) || is_spared(spared, sector);
        excused || oracle.shows(sector, image[sector], id) || has_rotted_since(image[sector], id)
    };
    // Of all flushes acknowledged before, the one submitted last covers what the others do.
    let flush = oracle
        .barriers()
        .iter()
        .filter_map(|barrier| match *barrier {
            Barrier::Flush {
                submitted,
                acknowledged,
            } if acknowledged < newest => Some(submitted),
            Barrier::Flush { .. } | Barrier::Fua { .. } => None,
        })
        .max();
    if let Some(flush) = flush {
        for (id, write) in oracle.writes() {
            let covered = write.acknowledged.is_some_and(|tick| tick < flush);
            if covered
                && write.kind != crate::oracle::Kind::Discard
                && let Some(sector) = sectors(write.range).find(|sector| !shows(*sector, id))
            {
                return Err(format!(
                    "write {newest_id} shows, write {id} does not at sector {sector}: a flush lies between them"
                ));
            }
        }
    }
    for barrier in oracle.barriers() {
        if let Barrier::Fua {
            write: id,
            acknowledged,
        } = *barrier
        {
            let write = oracle.write(id).expect("barriers are of this life");
            if acknowledged < newest
                && let Some(sector) = sectors(write.range).find(|sector| !shows(*sector, id))
            {
                return Err(format!(
                    "write {newest_id} shows, FUA write {id}, acknowledged before it, does not at sector {sector}"
                ));
            }
        }
    }
    Ok(())
}

/// Everything counted up to `generation` is there.
pub fn generations_hold(oracle: &Oracle, disk: &Disk, image: &[Token], generation: u64, spared: &[bool]) -> Check {
    for (id, write) in oracle.writes() {
        if write.generation.is_some_and(|number| number <= generation) {
            write_there(oracle, disk, image, id, spared)?;
        }
    }
    Ok(())
}

/// `image` shows write `id`, or something newer.
pub fn write_there(oracle: &Oracle, disk: &Disk, image: &[Token], id: WriteId, spared: &[bool]) -> Check {
    let write = oracle.write(id).ok_or("a write of an earlier life")?;
    for sector in sectors(write.range) {
        let excused = disk.is_forgiven(sector) || oracle.is_tainted(sector) || is_spared(spared, sector);
        if !excused && !oracle.shows(sector, image[sector], id) && !has_rotted_since(image[sector], id) {
            return Err(format!(
                "sector {sector} holds {:?}, but write {id} was counted as generation {:?}",
                image[sector], write.generation
            ));
        }
    }
    Ok(())
}

/// Nothing is in flight: the primary shows everything acknowledged, and a secondary in sync shows the same bytes.
/// Neither is expected of what has rotted; nor the same bytes of what is suspect.
pub fn at_rest(oracle: &Oracle, disks: &[Disk; 2], record: &Record, suspected: &[bool]) -> Check {
    let primary = record.primary.index();
    for (sector, (token, floor)) in disks[primary].live().iter().zip(oracle.floor()).enumerate() {
        if !at_least(oracle, sector, *token, *floor) {
            return Err(format!(
                "at rest sector {sector} of the primary holds {token:?}, write {floor} is due"
            ));
        }
    }
    let Some(secondary) = in_sync_secondary(record) else {
        return Ok(());
    };
    for (sector, (left, right)) in disks[primary].live().iter().zip(disks[secondary].live()).enumerate() {
        let odd = left.is_rotten() || right.is_rotten() || is_spared(suspected, sector);
        if !left.same_bytes(*right) && !odd {
            return Err(format!(
                "at rest and in sync, sector {sector} holds {left:?} and {right:?}"
            ));
        }
    }
    Ok(())
}

/// Of a lost primary, the secondary in sync that has everything that was on its way: it shows everything acknowledged.
pub fn survivor_holds(oracle: &Oracle, disk: &Disk, suspected: &[bool]) -> Check {
    holds(oracle, disk, disk.live(), oracle.floor(), suspected)
        .map_err(|what| format!("the primary is lost, and of the other leg {what}"))
}

/// `content` of a sector, hashed for a digest, is what the device held at `generation`.
pub fn digested(oracle: &Oracle, sector: usize, content: Token, generation: u64) -> Check {
    let Some((expected, zero)) = oracle.expected_at(generation, sector) else {
        return Ok(());
    };
    if content.id() != expected && !(zero && content.is_zero()) && !content.is_rotten() {
        return Err(format!(
            "a digest of generation {generation} hashed {content:?} at sector {sector}, write {expected} was there then"
        ));
    }
    Ok(())
}
