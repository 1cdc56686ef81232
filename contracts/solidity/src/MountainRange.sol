// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Hashes} from "@openzeppelin/contracts/utils/cryptography/Hashes.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

/// @title A Merkle mountain range that stores only its peaks
/// @notice A range of `count` leaves is one perfect tree per set bit of `count`, the highest tree
/// first. `peaks[h]` is the root of the tree of height `h` while bit `h` of `count` is set, and a
/// stale value otherwise (the next append that needs the slot overwrites it). An append writes
/// exactly one slot, which after the first few appends is almost never a new one.
///
/// A node is `keccak256(left || right)`: a leaf's index fixes the side at every height, so pairs
/// are not sorted. Leaves must not be hashes of 64-byte strings, or a node could pass for a leaf;
/// the fixed path length (see {contains}) closes the same door a second time.
library MountainRange {
    /// @dev Appends the leaf with index `count`; the caller keeps the count.
    function append(bytes32[64] storage peaks, uint64 count, bytes32 leaf) internal {
        uint256 height = 0;
        bytes32 node = leaf;
        // Like carrying in a binary counter: each set low bit is a finished tree to our left.
        for (uint64 rest = count; rest & 1 == 1; rest >>= 1) {
            node = Hashes.efficientKeccak256(peaks[height], node);
            ++height;
        }
        peaks[height] = node;
    }

    /// @dev Whether `leaf` is at `index` in the range of `count` leaves. `path` holds the siblings
    /// from the leaf up to its present peak, no more and no fewer. Never reverts.
    function contains(
        bytes32[64] storage peaks,
        uint64 count,
        uint64 index,
        bytes32 leaf,
        bytes32[] calldata path
    ) internal view returns (bool) {
        if (index >= count) return false;
        // The highest bit in which they differ is set in `count` and clear in `index`: that tree
        // is the one the leaf stands in.
        uint256 height = Math.log2(index ^ count);
        if (path.length != height) return false;
        bytes32 node = leaf;
        for (uint256 level = 0; level < height; ++level) {
            bool isRight = (index >> level) & 1 == 1;
            node = isRight
                ? Hashes.efficientKeccak256(path[level], node)
                : Hashes.efficientKeccak256(node, path[level]);
        }
        return node == peaks[height];
    }
}
