"""Evaluation of rendered views against photos: PSNR, SSIM, LPIPS and the report."""
