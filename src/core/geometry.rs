//! Places on a device and the units they are tracked in.

/// A range of bytes on the device, aligned to 512. Never empty but for operations without a range (FLUSH).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Range {
    /// The range of an operation that has none.
    pub const EMPTY: Range = Range { start: 0, len: 0 };

    /// A range of `len` bytes from `start`.
    pub const fn new(start: u64, len: u64) -> Range {
        Range { start, len }
    }

    /// The first byte behind the range.
    pub const fn end(self) -> u64 {
        self.start + self.len
    }

    /// Whether the two ranges share a byte.
    pub const fn overlaps(self, other: Range) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Whether every byte of `other` is in this range.
    pub const fn contains(self, other: Range) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }
}

/// The smallest unit that the kernel addresses, in bytes.
pub const SECTOR: u64 = 512;

/// The size of a device and the units in which it is tracked. All sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the device; a multiple of the logical block size, not necessarily of grain or extent.
    pub size: u64,
    /// Logical block size of the device, 512 or 4096: no request is smaller or less aligned.
    pub block: u32,
    /// The unit of dirty tracking: a power of two.
    pub grain: u32,
    /// The unit of signatures and of copying: a power of two, at least a grain.
    pub extent: u32,
}

impl Geometry {
    /// Grain of a device created without another choice.
    pub const GRAIN: u32 = 64 << 10;
    /// Extent of a device created without another choice.
    pub const EXTENT: u32 = 1 << 20;
    /// Most regions of a device: their marks fit one block, which a disk writes whole.
    pub const MOST_REGIONS: u64 = 32_000;
    /// The smallest region, in bytes.
    pub const LEAST_REGION: u64 = 4 << 20;

    /// The default units for a device of `size` bytes and logical blocks of `block` bytes.
    pub const fn new(size: u64, block: u32) -> Geometry {
        Geometry {
            size,
            block,
            grain: Geometry::GRAIN,
            extent: Geometry::EXTENT,
        }
    }

    /// The whole device.
    pub const fn whole(&self) -> Range {
        Range::new(0, self.size)
    }

    /// How many grains the device has; the last may be partial.
    pub const fn grains(&self) -> u64 {
        self.size.div_ceil(self.grain as u64)
    }

    /// How many extents the device has; the last may be partial.
    pub const fn extents(&self) -> u64 {
        self.size.div_ceil(self.extent as u64)
    }

    /// The extent that has this byte.
    pub const fn extent_at(&self, offset: u64) -> u64 {
        offset / self.extent as u64
    }

    /// Bytes of a region: the smallest power of two, of at least 4 MiB and an extent, of which the device has at most
    /// [`Geometry::MOST_REGIONS`]. It follows from the size alone, so that it needs no field in the superblock.
    pub const fn region(&self) -> u64 {
        // size / region <= most, rounded up, exactly when region >= size / most, rounded up.
        let needed = self.size.div_ceil(Geometry::MOST_REGIONS).next_power_of_two();
        let extent = self.extent as u64;
        let least = if extent > Geometry::LEAST_REGION {
            extent
        } else {
            Geometry::LEAST_REGION
        };
        if needed > least { needed } else { least }
    }

    /// How many regions the device has; the last may be partial.
    pub const fn regions(&self) -> u64 {
        self.size.div_ceil(self.region())
    }

    /// The regions that `range` touches, as first and one past the last.
    pub const fn regions_of(&self, range: Range) -> (u64, u64) {
        let region = self.region();
        (range.start / region, range.end().div_ceil(region))
    }

    /// The grains that `range` touches, as first and one past the last.
    pub const fn grains_of(&self, range: Range) -> (u64, u64) {
        let grain = self.grain as u64;
        (range.start / grain, range.end().div_ceil(grain))
    }

    /// The bytes of `extent`; shorter for a partial last one.
    pub const fn extent_range(&self, extent: u64) -> Range {
        let start = extent * self.extent as u64;
        let rest = self.size - start;
        Range::new(
            start,
            if rest < self.extent as u64 {
                rest
            } else {
                self.extent as u64
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_extent(size: u64, extent: u32) -> Geometry {
        Geometry {
            extent,
            ..Geometry::new(size, 512)
        }
    }

    #[test]
    fn a_region_is_the_smallest_power_of_two_of_which_there_are_not_too_many() {
        let mut sizes = vec![512, u64::MAX / 512 * 512];
        for shift in 9..63 {
            sizes.extend([(1 << shift) - 512, 1 << shift, (1 << shift) + 512]);
            let full = Geometry::MOST_REGIONS.saturating_mul(1 << shift) / 512 * 512;
            sizes.extend([full, full.saturating_add(512) / 512 * 512]);
        }
        for size in sizes.into_iter().filter(|&size| size > 0) {
            for extent in [16 << 10, 1 << 20, 16 << 20] {
                let geometry = with_extent(size, extent);
                let region = geometry.region();
                assert!(region.is_power_of_two() && region >= 4 << 20 && region >= u64::from(extent));
                assert!(
                    (1..=32_000).contains(&geometry.regions()),
                    "{size}: {}",
                    geometry.regions()
                );
                let is_least = region == 4 << 20 || region == u64::from(extent);
                assert!(
                    is_least || size.div_ceil(region / 2) > 32_000,
                    "{size} bytes do with half of {region}"
                );
            }
        }
    }

    #[test]
    fn a_tebibyte_has_regions_of_64_mib_and_a_small_disk_of_4() {
        assert_eq!(Geometry::new(1 << 40, 512).region(), 64 << 20);
        assert_eq!(Geometry::new(1 << 30, 512).region(), 4 << 20);
        assert_eq!(Geometry::new(32_000 * (4 << 20), 512).region(), 4 << 20);
        assert_eq!(Geometry::new(32_000 * (4 << 20) + 512, 512).region(), 8 << 20);
    }

    #[test]
    fn a_range_touches_the_regions_that_have_a_byte_of_it() {
        let geometry = Geometry::new(64 << 20, 512);
        let region = 4 << 20;
        for (range, regions) in [
            (Range::new(0, 512), (0, 1)),
            (Range::new(region - 512, 512), (0, 1)),
            (Range::new(region - 512, 1024), (0, 2)),
            (Range::new(region, 2 * region), (1, 3)),
            (geometry.whole(), (0, 16)),
        ] {
            assert_eq!(geometry.regions_of(range), regions, "{range:?}");
        }
    }
}
