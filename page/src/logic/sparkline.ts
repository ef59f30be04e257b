/** The least of 1, 1.5, 2, 3, 5, 7, 10, 15, ... that is not below `x`, nor below 1. */
export function niceCeiling(x: number): number {
  const decade = 10 ** Math.floor(Math.log10(Math.max(x, 1)));
  const step = [1, 1.5, 2, 3, 5, 7].find((multiple) => multiple * decade >= x) ?? 10;
  return step * decade;
}

/**
 * The path of the latest `capacity` values, the newest at the right edge, in a box of `width` x `height`
 * pixels whose top is `most`.
 */
export function linePath(
  values: readonly number[],
  capacity: number,
  most: number,
  width: number,
  height: number,
): string {
  const step = width / (capacity - 1);
  const left = width - step * (values.length - 1);
  const points = values.map((value, i) => `${tenth(left + i * step)},${tenth(height * (1 - value / most))}`);
  return points.length > 1 ? `M${points.join("L")}` : "";
}

function tenth(x: number): number {
  return Math.round(10 * x) / 10;
}
